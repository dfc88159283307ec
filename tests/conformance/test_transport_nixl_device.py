"""The transport `nixl` does what every transport must do where bytes go to a GPU, which host memory stands for here."""

from collections.abc import Iterator

import pytest

from modelexpress.transport import Transport
from modelexpress.transport.nixl_agent import Agent
from modelexpress.transport.nixl_library import missing
from tests.conformance.transport import TransportConformance
from tests.support.nixl_doubles import DeviceNixl, install
from tests.support.transport_source import TransportSource

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@pytest.fixture(scope="module")
def agents() -> Iterator[list[Agent]]:
    """The agent that tests share, as it is now: each takes it from here and leaves it here."""
    with pytest.MonkeyPatch.context() as patch:
        install(patch)
        agents = [Agent()]
        yield agents
        agents[0].native.end()


class TestNixlIntoDevices(TransportConformance):
    @pytest.fixture
    def source(self) -> Iterator[TransportSource]:
        with TransportSource("nixl") as source:
            yield source

    @pytest.fixture
    def transport(self, agents: list[Agent]) -> Iterator[Transport]:
        with DeviceNixl(agents[0]) as transport:
            yield transport
        agents[0] = transport.agent
