"""Real sources for tests of transports: processes of their own that export regions anyone can compute again."""

import json
import os
import signal
import ssl
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import psutil

from modelexpress.memory import HostArena
from modelexpress.transport import Export, LocalTransport, NixlTransport, TcpTransport, Transport
from tests.support.children import Child, say
from tests.support.staged_tcp import StagedTcp

TOKEN = "the lease's token"


def content(number: int, nbytes: int) -> bytes:
    """Return the bytes of region `number` of every export."""
    return np.random.default_rng(number).bytes(nbytes)


@dataclass(frozen=True)
class Usage:
    """What a process holds: open descriptors, threads, resident bytes."""

    descriptors: int
    threads: int
    resident: int

    @classmethod
    def of(cls, pid: int) -> "Usage":
        """Return what a process holds now."""
        process = psutil.Process(pid)
        return cls(process.num_fds(), process.num_threads(), process.memory_info().rss)


@dataclass(frozen=True)
class Exported:
    """An export of a source process."""

    source: "TransportSource"
    number: int
    descriptor: bytes

    def grant(self, token: str = TOKEN) -> Self:
        """Let the holders of `token` in."""
        self.source.ask("grant", self.number, token)
        return self

    def revoke(self, token: str = TOKEN) -> None:
        """Refuse `token` from now on."""
        self.source.ask("revoke", self.number, token)

    def close(self) -> None:
        """Withdraw the export."""
        self.source.ask("close", self.number)


class TransportSource(Child):
    """A process with one transport.

    Args:
        name: `local`, `nixl` or `tcp`; `staged` is `tcp` with regions that count as device memory, `device` is `tcp`
            with regions that are in it.
        certificate: A folder with cert.pem and key.pem makes `tcp` and `nixl` encrypt.
        visible: CUDA_VISIBLE_DEVICES of the process; None: that of this one.
    """

    def __init__(self, name: str, certificate: Path | None = None, visible: str | None = None) -> None:
        options = [name, str(certificate)] if certificate else [name]
        environment = {"OPENBLAS_NUM_THREADS": "1"}  # threads are counted, and numpy's are not meant
        if visible is not None:
            environment["CUDA_VISIBLE_DEVICES"] = visible
        warm = visible is None and name != "device"
        super().__init__("tests.support.transport_source", *options, environment=environment, warm=warm)

    def ask(self, command: str, *arguments: Any) -> Any:
        """Let the process execute a command, and return its answer."""
        self.tell(json.dumps([command, *arguments]))
        return self.answer()

    def export(self, sizes: Sequence[int]) -> Exported:
        """Export regions of `sizes` bytes, filled with `content`."""
        number, descriptor = self.ask("export", list(sizes))
        return Exported(self, number, descriptor.encode())

    def usage(self) -> Usage:
        """Return what the process holds now."""
        return Usage.of(self.process.pid)

    def stop(self) -> None:
        """Freeze the process."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Thaw the process."""
        self.process.send_signal(signal.SIGCONT)


class _Source:
    """The commands, in the process of the source."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._exports: list[tuple[Export, list[HostArena]]] = []

    def export(self, sizes: list[int]) -> tuple[int, str]:
        arenas = [HostArena(nbytes) for nbytes in sizes]
        for number, arena in enumerate(arenas):
            arena.region.view()[:] = content(number, arena.region.nbytes)
        export = self._transport.export([arena.region for arena in arenas])
        self._exports.append((export, arenas))
        return len(self._exports) - 1, export.descriptor.decode()

    def grant(self, number: int, token: str) -> None:
        self._exports[number][0].grant(token)

    def revoke(self, number: int, token: str) -> None:
        self._exports[number][0].revoke(token)

    def close(self, number: int) -> None:
        """Withdraw an export and use its memory for something else, as an engine would."""
        export, arenas = self._exports[number]
        export.close()
        for arena in arenas:
            arena.region.view()[:] = bytes(arena.region.nbytes)
            arena.close()

    def threads(self) -> list[str]:
        return [thread.name for thread in threading.enumerate()]

    def fork(self) -> int:
        """Leave a child behind that holds on to what it inherited."""
        child = os.fork()
        if child == 0:
            signal.pause()
        return child


def make(name: str, certificate: Path | None = None, **options: Any) -> Transport:
    """Return the transport called `name`, with a stall deadline that suits tests."""
    if name == "local":
        return LocalTransport(stall_timeout=1.0, **options)
    server = client = None
    if certificate is not None:
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
        client = ssl.create_default_context(cafile=certificate / "cert.pem")
    if name == "nixl":
        options["without_cards"] = True
    kinds: dict[str, Callable[..., Transport]] = {"nixl": NixlTransport, "staged": StagedTcp, "tcp": TcpTransport}
    if name == "device":
        from tests.support.device_tcp import DeviceTcp  # it imports torch, which takes seconds

        kinds[name] = DeviceTcp
    return kinds[name](stall_timeout=1.0, server_tls=server, client_tls=client, **options)


def main(name: str, certificate: str = "") -> None:
    """Execute the commands on standard input until it ends."""
    with make(name, Path(certificate) if certificate else None) as transport:
        source = _Source(transport)
        for line in sys.stdin:
            command, *arguments = json.loads(line)
            action: Callable[..., Any] = getattr(source, command)
            say(json.dumps(action(*arguments)))


if __name__ == "__main__":
    main(*sys.argv[1:])
