"""The transport `nixl` does what every transport must do: here between processes of a host without a network card."""

from collections.abc import Iterator

import pytest

from modelexpress.transport import Transport
from modelexpress.transport.nixl_library import missing
from tests.conformance.transport import TransportConformance
from tests.support.transport_source import TransportSource, make

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


class TestNixl(TransportConformance):
    @pytest.fixture
    def source(self) -> Iterator[TransportSource]:
        with TransportSource("nixl") as source:
            yield source

    @pytest.fixture
    def transport(self) -> Iterator[Transport]:
        with make("nixl") as transport:
            yield transport
