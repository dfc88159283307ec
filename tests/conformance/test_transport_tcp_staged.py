"""The transport `tcp` does what every transport must do when there is device memory at both ends.

The driver is a double here; tests/gpu/test_tcp_device.py has the real one.
"""

from collections.abc import Iterator

import pytest

from modelexpress.transport import Transport
from tests.conformance.test_transport_tcp import TestTcp as _Plain
from tests.support.staged_tcp import StagedTcp
from tests.support.transport_source import TransportSource


class TestStagedTcp(_Plain):
    @pytest.fixture
    def source(self) -> Iterator[TransportSource]:
        with TransportSource("staged") as source:
            yield source

    @pytest.fixture
    def transport(self) -> Iterator[Transport]:
        with StagedTcp(stall_timeout=1.0) as transport:
            yield transport
            assert not transport.double.streams, "a stream was not given back"
            assert not transport.double.buffers, "a buffer was not given back"
