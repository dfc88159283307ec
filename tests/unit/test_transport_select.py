"""The fastest transport that works is used, and every other one has its reason."""

from collections.abc import Iterator

import pytest

from modelexpress.errors import AccessDenied, RegionWithdrawn, TransportUnavailable
from modelexpress.memory import HostArena
from modelexpress.settings import Settings
from modelexpress.transport import (
    Export,
    LocalTransport,
    NixlTransport,
    Reader,
    TcpTransport,
    Transport,
    available,
    open_first,
)
from modelexpress.wire.records import TransportOffer
from tests.support.read_target import PROMPT, Target
from tests.support.staged_tcp import StagedTcp

TOKEN = "token"


@pytest.fixture
def transports() -> Iterator[tuple[Transport, Transport]]:
    with LocalTransport() as local, TcpTransport() as tcp:
        yield local, tcp


@pytest.fixture
def exports(transports: tuple[Transport, Transport]) -> Iterator[list[Export]]:
    with HostArena(64) as arena:
        exports = [transport.export([arena.region]) for transport in transports]
        for export in exports:
            export.grant(TOKEN)
        yield exports


def offers(exports: list[Export]) -> list[TransportOffer]:
    """Return what a source would send, worst first."""
    names = ("tcp", "local")
    return [TransportOffer(name, export.descriptor) for name, export in zip(names, reversed(exports), strict=True)]


def test_local_comes_before_tcp() -> None:
    names = [transport.name for transport in available(Settings()).transports]
    assert [name for name in names if name != "nixl"] == ["local", "tcp"]


def test_a_setting_chooses_one_and_the_others_have_their_reason() -> None:
    chosen = available(Settings(transport="tcp"))
    assert [transport.name for transport in chosen.transports] == ["tcp"]
    assert dict(chosen.reasons)["local"] == "MX_TRANSPORT asks for tcp"


def test_a_setting_puts_one_first_and_keeps_the_others() -> None:
    chosen = available(Settings(transport_first="tcp"))
    assert [transport.name for transport in chosen.transports if transport.name != "nixl"] == ["tcp", "local"]
    assert "tcp" not in dict(chosen.reasons)


def test_what_the_source_could_not_offer_comes_with_its_reason(
    transports: tuple[Transport, Transport], exports: list[Export]
) -> None:
    refused = TransportOffer("local", b"", "the memory cannot be shared")
    opened = open_first(transports, [refused, offers(exports)[0]], TOKEN)
    opened.reader.close()
    assert opened.transport is transports[1]
    assert opened.skipped == (("local", "the source cannot offer it: the memory cannot be shared"),)


def test_an_address_of_another_host_cannot_be_listened_on() -> None:
    chosen = available(Settings(transport="tcp"), host="192.0.2.1")
    assert chosen.transports == ()
    assert "192.0.2.1 cannot be listened on" in dict(chosen.reasons)["tcp"]


def test_the_first_that_works_is_opened(transports: tuple[Transport, Transport], exports: list[Export]) -> None:
    opened = open_first(transports, offers(exports), TOKEN)
    opened.reader.close()
    assert opened.transport is transports[0]
    assert opened.skipped == ()


def test_what_cannot_work_is_skipped_with_its_reason(
    transports: tuple[Transport, Transport], exports: list[Export]
) -> None:
    elsewhere = exports[0].descriptor.replace(b'"boot_id":"', b'"boot_id":"another ')
    opened = open_first(transports, [TransportOffer("local", elsewhere), offers(exports)[0]], TOKEN)
    opened.reader.close()
    assert opened.transport is transports[1]
    assert opened.skipped == (("local", "the source runs on another host"),)


def test_what_is_not_offered_is_skipped(transports: tuple[Transport, Transport], exports: list[Export]) -> None:
    opened = open_first(transports, offers(exports)[:1], TOKEN)
    opened.reader.close()
    assert opened.skipped == (("local", "the source does not offer it"),)


def test_when_none_works_every_reason_is_named(transports: tuple[Transport, Transport]) -> None:
    garbage = [TransportOffer("local", b"?"), TransportOffer("tcp", b"?"), TransportOffer("carrier pigeon", b"")]
    with pytest.raises(TransportUnavailable, match=r"offers carrier pigeon, local, tcp: local: .*; tcp: "):
        open_first(transports, garbage, TOKEN)
    with pytest.raises(TransportUnavailable, match="this process has no transport"):
        open_first([], garbage, TOKEN)


def test_a_refusal_by_all_is_a_refusal(transports: tuple[Transport, Transport], exports: list[Export]) -> None:
    with pytest.raises(AccessDenied, match=r"local: the source refused .*; tcp: the source refused"):
        open_first(transports, offers(exports), "wrong")


def test_withdrawn_memory_is_not_tried_again(transports: tuple[Transport, Transport], exports: list[Export]) -> None:
    exports[0].close()
    with pytest.raises(RegionWithdrawn):
        open_first(transports, offers(exports), TOKEN)


class UnmappableDouble(LocalTransport):
    """`local` on a host whose GPUs cannot reach each other."""

    def open(self, descriptor: bytes, token: str, device: int | None = None) -> Reader:
        assert device is not None
        raise TransportUnavailable(f"device {device} cannot map the source's memory: peer access is not supported")


def test_a_gpu_that_cannot_map_the_sources_memory_falls_back_to_tcp() -> None:
    target = Target(100)
    with UnmappableDouble() as local, NixlTransport() as nixl, StagedTcp() as tcp, HostArena(100) as arena:
        arena.region.view()[:] = bytes(range(100))
        exports = {transport.name: transport.export([arena.region]) for transport in (tcp, local)}
        for export in exports.values():
            export.grant(TOKEN)
        offered = [TransportOffer(name, export.descriptor) for name, export in exports.items()]
        opened = open_first((local, nixl, tcp), [*offered, TransportOffer("nixl", b"?")], TOKEN, 0)
        with opened.reader as reader:
            reader.read([target.run(0, 0, 100)]).wait(PROMPT)
    assert opened.transport is tcp
    assert target.bytes == bytes(range(100))
    assert [name for name, _ in opened.skipped] == ["local", "nixl"]
    assert dict(opened.skipped)["local"].endswith("peer access is not supported")
    assert dict(opened.skipped)["nixl"]


def test_a_gpu_that_no_transport_reaches_has_every_reason(
    transports: tuple[Transport, Transport], exports: list[Export]
) -> None:
    """Device 99 is nowhere; `local` was refused before."""
    elsewhere = exports[0].descriptor.replace(b'"boot_id":"', b'"boot_id":"another ')
    with pytest.raises(TransportUnavailable, match="local: the source runs on another host; tcp: device 99 cannot be"):
        open_first(transports, [TransportOffer("local", elsewhere), offers(exports)[0]], TOKEN, 99)
