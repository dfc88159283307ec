"""The transport `tcp` does what every transport must do, with and without encryption."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelexpress.errors import PeerLost, TransferTimeout
from modelexpress.transport import Transport
from tests.conformance.transport import TransportConformance
from tests.support.read_target import BIG, PROMPT, Target, long_read
from tests.support.transport_source import TOKEN, Exported, TransportSource, make


class TestTcp(TransportConformance):
    @pytest.fixture
    def certificate(self) -> Path | None:
        return None

    @pytest.fixture
    def source(self, certificate: Path | None) -> Iterator[TransportSource]:
        with TransportSource("tcp", certificate) as source:
            yield source

    @pytest.fixture
    def transport(self, certificate: Path | None) -> Iterator[Transport]:
        with make("tcp", certificate) as transport:
            yield transport

    def test_a_killed_source_is_noticed_at_once(
        self, source: TransportSource, big: Exported, transport: Transport
    ) -> None:
        target = Target(BIG)
        with transport.open(big.descriptor, TOKEN) as reader:
            transfer = long_read(reader, target)
            child = source.ask("fork")  # it inherited the connections, and must not keep them
            source.kill()
            started = time.monotonic()
            with pytest.raises(PeerLost):
                transfer.wait(PROMPT)
            assert time.monotonic() - started < 1.0, "before the stall deadline"
        os.kill(child, signal.SIGKILL)

    def test_a_frozen_source_is_noticed_within_the_stall_deadline(
        self, source: TransportSource, big: Exported, transport: Transport
    ) -> None:
        target = Target(BIG)
        with transport.open(big.descriptor, TOKEN) as reader:
            transfer = long_read(reader, target)
            source.stop()
            with pytest.raises(TransferTimeout, match="MX_STALL_TIMEOUT"):
                transfer.wait(PROMPT)
