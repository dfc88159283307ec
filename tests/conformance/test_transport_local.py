"""The transport `local` does what every transport must do, and outlives its source."""

from collections.abc import Iterator

import pytest

from modelexpress.transport import Transport
from tests.conformance.transport import TransportConformance
from tests.support.read_target import BIG, PROMPT, REPEATS, Target, long_read
from tests.support.transport_source import TOKEN, Exported, TransportSource, content, make


class TestLocal(TransportConformance):
    @pytest.fixture
    def source(self) -> Iterator[TransportSource]:
        with TransportSource("local") as source:
            yield source

    @pytest.fixture
    def transport(self) -> Iterator[Transport]:
        with make("local") as transport:
            yield transport

    def test_the_memory_outlives_its_source(self, source: TransportSource, big: Exported, transport: Transport) -> None:
        target = Target(BIG)
        with transport.open(big.descriptor, TOKEN) as reader:
            transfer = long_read(reader, target)
            source.kill()
            transfer.wait(4 * PROMPT)
        assert transfer.progress == REPEATS * BIG
        assert target.bytes == content(0, BIG)
