"""What every transport must do. A transport's test file subclasses this and says how its two sides are made.

The source is a real process; the target is the test.
"""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from modelexpress.errors import (
    AccessDenied,
    PeerLost,
    RegionWithdrawn,
    TransferTimeout,
    TransportError,
    TransportUnavailable,
)
from modelexpress.transport import Run, Transport
from tests.support.read_target import BIG, MIB, PROMPT, REPEATS, Target, long_read, seconds_until_over
from tests.support.transport_source import TOKEN, Exported, TransportSource, Usage, content
from tests.support.waiting import wait_until


class TransportConformance:
    """Subclasses define the fixtures `source` (a fresh `TransportSource`) and `transport` (the target's)."""

    @pytest.fixture
    def source(self) -> Iterator[TransportSource]:
        raise NotImplementedError("a transport's test file provides this")

    @pytest.fixture
    def transport(self) -> Iterator[Transport]:
        raise NotImplementedError("a transport's test file provides this")

    @pytest.fixture
    def big(self, source: TransportSource) -> Exported:
        """One region of `BIG` bytes, open to `TOKEN`."""
        return source.export([BIG]).grant()

    def test_it_works_on_this_machine(self, transport: Transport) -> None:
        assert transport.unavailable() is None

    # ---- what arrives

    def test_bytes_arrive_in_their_places(self, source: TransportSource, transport: Transport) -> None:
        sizes = [5, 3 * MIB + 1, 0, 20 * MIB + 7]
        exported = source.export(sizes).grant()
        target = Target(sum(sizes))
        starts = np.cumsum([0, *sizes])
        with transport.open(exported.descriptor, TOKEN) as reader:
            order = [3, 0, 2, 1]
            transfer = reader.read([target.run(n, 0, sizes[n], at=int(starts[n])) for n in order])
            transfer.wait(PROMPT)
        assert transfer.done()
        assert transfer.progress == sum(sizes)
        assert bytes(target.bytes) == b"".join(content(n, size) for n, size in enumerate(sizes))

    def test_parts_of_regions_can_be_read(self, big: Exported, transport: Transport) -> None:
        target = Target(BIG)
        with transport.open(big.descriptor, TOKEN) as reader:
            reader.read([target.run(0, 4097, 9 * MIB, at=11), target.run(0, BIG - 1, 1, at=3)]).wait(PROMPT)
        expected = bytearray(BIG)
        expected[11 : 11 + 9 * MIB] = content(0, BIG)[4097 : 4097 + 9 * MIB]
        expected[3] = content(0, BIG)[-1]
        assert target.bytes == expected

    def test_many_small_runs_of_odd_sizes(self, big: Exported, transport: Transport) -> None:
        sizes = np.random.default_rng(1).integers(1, 700, 10_000)
        offsets = np.random.default_rng(2).integers(0, BIG - 700, 10_000)
        places = np.cumsum(sizes) - sizes
        target = Target(int(sizes.sum()))
        rows = list(zip(offsets.tolist(), sizes.tolist(), places.tolist(), strict=True))
        with transport.open(big.descriptor, TOKEN) as reader:
            reader.read([target.run(0, offset, size, at=place) for offset, size, place in rows]).wait(PROMPT)
        data = content(0, BIG)
        assert bytes(target.bytes) == b"".join(data[offset : offset + size] for offset, size, _ in rows)

    def test_nothing_is_read_at_once(self, big: Exported, transport: Transport) -> None:
        target = Target(4)
        with transport.open(big.descriptor, TOKEN) as reader:
            for runs in ([], [target.run(0, 0, 0)], [target.run(0, BIG, 0), target.run(0, 7, 0)]):
                transfer = reader.read(runs)
                assert transfer.done()
                transfer.wait()
                assert transfer.progress == 0
            mixed = reader.read([target.run(0, 0, 0), target.run(0, 0, 4), target.run(0, 4, 0)])
            mixed.wait(PROMPT)
        assert bytes(target.bytes) == content(0, BIG)[:4]

    def test_transfers_may_overlap(self, big: Exported, transport: Transport) -> None:
        targets = [Target(BIG) for _ in range(3)]
        with transport.open(big.descriptor, TOKEN) as reader:
            transfers = [reader.read([target.run(0, 0, BIG)]) for target in targets]
            for transfer in reversed(transfers):
                transfer.wait(PROMPT)
        assert all(target.bytes == content(0, BIG) for target in targets)

    def test_progress_grows_to_the_end(self, big: Exported, transport: Transport) -> None:
        target = Target(BIG)
        with transport.open(big.descriptor, TOKEN) as reader:
            transfer = reader.read([target.run(0, 0, BIG)] * 20)
            seen = [0]
            while not transfer.done():
                seen.append(transfer.progress)
                with contextlib.suppress(TransferTimeout):
                    transfer.wait(0.002)
            transfer.wait(PROMPT)
        assert seen == sorted(seen)
        assert transfer.progress == 20 * BIG

    def test_two_readers_at_once(self, big: Exported, transport: Transport) -> None:
        targets = [Target(BIG), Target(BIG)]
        big.grant("another")
        with (
            transport.open(big.descriptor, TOKEN) as first,
            transport.open(big.descriptor, "another") as second,
        ):
            transfers = [
                first.read([targets[0].run(0, 0, BIG)] * 8),
                second.read([targets[1].run(0, 0, BIG)] * 8),
            ]
            for transfer in transfers:
                transfer.wait(20)
        assert all(target.bytes == content(0, BIG) for target in targets)

    def test_hundreds_of_regions(self, source: TransportSource, transport: Transport) -> None:
        exported = source.export([64] * 300).grant()
        target = Target(300 * 64)
        with transport.open(exported.descriptor, TOKEN) as reader:
            reader.read([target.run(n, 0, 64, at=64 * n) for n in range(300)]).wait(PROMPT)
        assert bytes(target.bytes) == b"".join(content(n, 64) for n in range(300))

    # ---- what may not be read

    def test_a_wrong_token_is_refused(self, big: Exported, transport: Transport) -> None:
        for token in ("", "wrong", TOKEN + "x", TOKEN[:-1], "é" * 200):
            with pytest.raises(AccessDenied):
                transport.open(big.descriptor, token)

    def test_a_revoked_token_is_refused_and_ends_its_readers(self, big: Exported, transport: Transport) -> None:
        big.grant("another")
        targets = [Target(BIG), Target(BIG)]
        with transport.open(big.descriptor, TOKEN) as revoked, transport.open(big.descriptor, "another") as kept:
            transfers = [long_read(revoked, targets[0]), kept.read([targets[1].run(0, 0, BIG)] * 4)]
            big.revoke()
            with pytest.raises(AccessDenied):
                transfers[0].wait(PROMPT)
            transfers[1].wait(20)
            with pytest.raises(AccessDenied):
                transport.open(big.descriptor, TOKEN)
        big.revoke("unknown")
        assert targets[1].bytes == content(0, BIG)

    def test_an_export_that_is_closed_withdraws_its_regions(self, big: Exported, transport: Transport) -> None:
        target = Target(BIG)
        with transport.open(big.descriptor, TOKEN) as reader, transport.open(big.descriptor, TOKEN) as idle:
            transfer = long_read(reader, target)
            big.close()
            for over in (transfer, reader.read([target.run(0, 0, 1)]), idle.read([target.run(0, 0, 1)])):
                with pytest.raises(RegionWithdrawn):
                    over.wait(PROMPT)
        with pytest.raises(RegionWithdrawn):
            transport.open(big.descriptor, TOKEN)

    def test_closing_one_export_leaves_the_others(self, source: TransportSource, transport: Transport) -> None:
        exports = [source.export([BIG]).grant() for _ in range(4)]
        targets = [Target(BIG) for _ in exports]
        readers = [transport.open(exported.descriptor, TOKEN) for exported in exports]
        exports[1].close()
        for number in (0, 2, 3):
            readers[number].read([targets[number].run(0, 0, BIG)]).wait(PROMPT)
            assert targets[number].bytes == content(0, BIG)
        with pytest.raises(RegionWithdrawn):
            readers[1].read([targets[1].run(0, 0, BIG)]).wait(PROMPT)
        for reader in readers:
            reader.close()

    @pytest.mark.parametrize(
        ("region", "offset", "nbytes"),
        [
            (1, 0, 1),
            (-1, 0, 1),
            (2**40, 0, 1),
            (0, BIG, 1),
            (0, BIG - 1, 2),
            (0, -1, 2),
            (0, 2**63 - 1, 1),
            (0, 2**70, 1),
            (0, 5, -1),
            (0, 0, 2**40),
        ],
    )
    def test_what_is_not_in_a_region_is_withdrawn(
        self, big: Exported, transport: Transport, region: int, offset: int, nbytes: int
    ) -> None:
        target = Target(8)
        with transport.open(big.descriptor, TOKEN) as reader:
            wrong = reader.read([Run(region, offset, target.address, nbytes)])
            with pytest.raises(RegionWithdrawn):
                wrong.wait(PROMPT)
            reader.read([target.run(0, 8, 8)]).wait(PROMPT)
        assert bytes(target.bytes) == content(0, BIG)[8:16]

    # ---- readers that stop

    def test_a_reader_that_stops_in_the_middle(self, big: Exported, transport: Transport) -> None:
        target = Target(BIG)
        reader = transport.open(big.descriptor, TOKEN)
        transfer = long_read(reader, target)
        started = time.monotonic()
        reader.close()
        assert time.monotonic() - started < PROMPT
        target.bytes[:] = bytes(BIG)
        with pytest.raises(PeerLost):
            transfer.wait(PROMPT)
        with pytest.raises(PeerLost):
            reader.read([target.run(0, 0, 1)]).wait(PROMPT)
        reader.close()
        elsewhere = Target(BIG)
        with transport.open(big.descriptor, TOKEN) as other:
            other.read([elsewhere.run(0, 0, BIG)] * 8).wait(20)
        assert not any(target.bytes), "bytes landed after the reader was closed"

    def test_waiting_ends_at_the_timeout(self, big: Exported, transport: Transport) -> None:
        target = Target(BIG)
        with transport.open(big.descriptor, TOKEN) as reader:
            transfer = long_read(reader, target)
            with pytest.raises(TransferTimeout):
                transfer.wait(0.01)
            assert not transfer.done()

    # ---- sources that die

    def test_a_source_that_is_killed_in_the_middle(
        self, source: TransportSource, big: Exported, transport: Transport
    ) -> None:
        target = Target(BIG)
        with transport.open(big.descriptor, TOKEN) as reader:
            transfer = long_read(reader, target)
            source.kill()
            seconds_until_over(transfer)
            assert transfer.done()
        if transfer.progress == REPEATS * BIG:
            assert target.bytes == content(0, BIG)
        with pytest.raises((PeerLost, TransportUnavailable)):
            transport.open(big.descriptor, TOKEN)

    def test_a_source_that_is_frozen_in_the_middle(
        self, source: TransportSource, big: Exported, transport: Transport
    ) -> None:
        target = Target(BIG)
        with transport.open(big.descriptor, TOKEN) as reader:
            transfer = long_read(reader, target)
            source.stop()
            assert seconds_until_over(transfer) < PROMPT
            assert transfer.done()
        if transfer.progress == REPEATS * BIG:
            assert target.bytes == content(0, BIG)
        with pytest.raises(TransferTimeout):
            transport.open(big.descriptor, TOKEN)

    # ---- what is left behind

    def test_nothing_is_left_behind(self, source: TransportSource, big: Exported, transport: Transport) -> None:
        target = Target(BIG)

        def read() -> None:
            with transport.open(big.descriptor, TOKEN) as reader:
                reader.read([target.run(0, 0, BIG)]).wait(PROMPT)

        read()
        wait_until(lambda: not any("connection" in name for name in source.ask("threads")))
        before, theirs = Usage.of(os.getpid()), source.usage()
        for _ in range(20):
            read()
            with pytest.raises(AccessDenied):
                transport.open(big.descriptor, "wrong")
        assert Usage.of(os.getpid()).descriptors == before.descriptors
        # The kernel may take a moment to bury a thread that was joined: also those that were counted before.
        wait_until(lambda: Usage.of(os.getpid()).threads <= before.threads)
        wait_until(lambda: source.usage().threads <= theirs.threads)
        wait_until(lambda: source.usage().descriptors == theirs.descriptors)

    def test_a_closed_transport_leaves_no_port_and_no_thread(
        self, source: TransportSource, big: Exported, transport: Transport
    ) -> None:
        before = Usage.of(os.getpid())
        with transport:
            exported = transport.export([])
            exported.grant(TOKEN)
            assert Usage.of(os.getpid()).threads == before.threads + 1
        transport.close()
        assert Usage.of(os.getpid()).descriptors == before.descriptors
        wait_until(lambda: Usage.of(os.getpid()).threads == before.threads)
        with pytest.raises(TransportUnavailable):
            transport.export([])
        with pytest.raises((PeerLost, TransportUnavailable)):
            transport.open(exported.descriptor, TOKEN)

    # ---- what a stranger can send

    def test_a_descriptor_of_garbage_is_refused(self, transport: Transport) -> None:
        @hypothesis_settings(max_examples=100, deadline=None)
        @given(st.one_of(st.binary(max_size=300), st.text(max_size=300).map(str.encode)))
        @example(b"")
        @example(b"[" * 100_000)
        @example(b'{"version":1}')
        @example(b"9" * 100_000)
        def refused(garbage: bytes) -> None:
            with pytest.raises(TransportUnavailable):
                transport.open(garbage, TOKEN)

        refused()

    def test_a_damaged_descriptor_never_lets_wrong_bytes_in(self, big: Exported, transport: Transport) -> None:
        for damaged in _damaged(big.descriptor):
            target = Target(64)
            try:
                with transport.open(damaged, TOKEN) as reader:
                    reader.read([target.run(0, 0, 64)]).wait(PROMPT)
            except TransportError:
                continue
            assert bytes(target.bytes) == content(0, BIG)[:64]

    def test_the_limit_of_the_link_is_measured_quickly(self, big: Exported, transport: Transport) -> None:
        limit = transport.limit(big.descriptor)
        assert limit is None or (limit.bytes_per_second > 0 and limit.how)


def _damaged(descriptor: bytes) -> Sequence[bytes]:
    """Return the descriptor with one byte changed, cut short, or doubled."""
    random = np.random.default_rng(3)
    changed = []
    for _ in range(60):
        copy = bytearray(descriptor)
        copy[random.integers(len(copy))] = random.integers(256)
        changed.append(bytes(copy))
    return [*changed, descriptor[:-1], descriptor[: len(descriptor) // 2], descriptor * 2]
