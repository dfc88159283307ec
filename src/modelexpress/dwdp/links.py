"""Unix sockets between the ranks of a group: they carry descriptors of memory, and tell when a rank ends."""

import errno
import os
import select
import socket
import struct
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from modelexpress.dwdp.interrupts import await_readable
from modelexpress.dwdp.ranks import Ranks, agreed_name
from modelexpress.errors import DwdpError, RankLost

R = TypeVar("R")
MOST_DESCRIPTORS = 200
"""In one message; the kernel takes 253 (SCM_MAX_FD)."""
_HELLO = struct.Struct("!I32s")
_LEAVING = b"leaving"
_NO_MORE_FILES = "this process may open no more files: raise the limit (`ulimit -n`)"
_TOO_MANY_ON_THE_WAY = (
    "more descriptors of this user are on their way between processes than a process may open files: raise the limit "
    "(`ulimit -n`)"
)
_open: "weakref.WeakSet[Links]" = weakref.WeakSet()


@contextmanager
def telling_of_files() -> Iterator[None]:
    """Say what helps where a block needs more open files than there may be.

    Raises:
        DwdpError: The process may open no more files.
    """
    try:
        yield
    except OSError as error:
        if error.errno == errno.EMFILE:
            raise DwdpError(_NO_MORE_FILES) from error
        raise


class _Home(NamedTuple):
    """What two processes have in common if they can pass descriptors to each other."""

    host: str
    boot: str
    network: int

    @classmethod
    def here(cls) -> "_Home":
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return cls(socket.gethostname(), boot, Path("/proc/self/ns/net").stat().st_ino)


class Links:
    """A connection to each other rank.

    Args:
        ranks: The group.
        deadline: Seconds to wait for any of them.

    Raises:
        DwdpError: They are not on one host, or not of one user.
        RankLost: One did not connect.
    """

    def __init__(self, ranks: Ranks, deadline: float) -> None:
        self._ranks, self._deadline = ranks, deadline
        self._sockets: dict[int, socket.socket] = {}
        self._watcher: _Watcher | None = None
        self._check_home(ranks.gather(_Home.here()))
        name = agreed_name(ranks)
        with ExitStack() as undo:
            undo.callback(self.close)
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
                listener.bind(_address(name, ranks.rank))
                listener.listen(ranks.size)
                listener.settimeout(deadline)
                ranks.gather(True)  # everybody listens
                for peer in range(ranks.rank):
                    self._connect(peer, name)
                ranks.gather(True)  # everybody has connected: nobody waits for one that could not
                while len(self._sockets) < ranks.size - 1:
                    self._accept(listener, name)
            undo.pop_all()
        _open.add(self)

    def swap(self, descriptors: Sequence[int]) -> dict[int, list[int]]:
        """Send descriptors to all other ranks, and return what each of them sent, as many; the caller closes those.

        Raises:
            RankLost: One of them ended, or sent nothing within the deadline.
        """
        received: dict[int, list[int]] = {peer: [] for peer in self._sockets}
        with ExitStack() as undo:
            undo.callback(_close_all, received)
            for start in range(0, len(descriptors), MOST_DESCRIPTORS):
                part = descriptors[start : start + MOST_DESCRIPTORS]
                for peer, link in self._sockets.items():
                    self._guarded(peer, partial(socket.send_fds, link, [b"fd"], part))
                for peer, link in self._sockets.items():
                    received[peer] += self._receive(peer, link, len(part))
            undo.pop_all()
        return received

    def watch(self) -> None:
        """Notice from now on when another rank ends without leaving; `check` tells."""
        self._watcher = _Watcher(self._sockets, self._ranks.rank)

    def check(self) -> None:
        """Raise RankLost if another rank has ended without leaving."""
        if self._watcher is not None and self._watcher.lost is not None:
            raise RankLost(self._watcher.lost)

    def close(self) -> None:
        """Leave: the others go on. Closing twice is allowed."""
        if self._watcher is not None:
            self._watcher.stop()
            self._watcher = None
        while self._sockets:
            _, link = self._sockets.popitem()
            with suppress(OSError):  # the other one has left, or ended
                link.send(_LEAVING, socket.MSG_DONTWAIT)
            link.close()

    def forget(self) -> None:
        """Close a forked child's copies, which would hide from the others that this rank has ended."""
        for link in self._sockets.values():
            link.close()

    def _check_home(self, homes: list[_Home]) -> None:
        if len({(home.boot, home.network) for home in homes}) > 1:
            where = ", ".join(f"{home.host} (network {home.network})" for home in homes)
            raise DwdpError(
                "the ranks of a group pass memory to each other as descriptors, within one host and one network "
                f"namespace, but they are on {where}: place each group on one host (deploy/slurm), or choose a smaller "
                "dwdp_size"
            )

    def _connect(self, peer: int, name: str) -> None:
        link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sockets[peer] = link
        link.settimeout(self._deadline)
        self._guarded(peer, lambda: link.connect(_address(name, peer)))
        if (user := _user(link)) != os.getuid():
            raise DwdpError(f"rank {peer} of the group is a process of user {user}: start all ranks as one user")
        self._guarded(peer, lambda: link.send(_HELLO.pack(self._ranks.rank, name.encode())))

    def _accept(self, listener: socket.socket, name: str) -> None:
        try:
            link, _ = listener.accept()
        except TimeoutError as error:
            raise RankLost(f"not all ranks of the group connected within {self._deadline:g} s") from error
        link.settimeout(self._deadline)
        with ExitStack() as undo:
            undo.callback(link.close)
            hello = b"" if _user(link) != os.getuid() else self._guarded(None, partial(link.recv, _HELLO.size))
            peer, secret = _HELLO.unpack(hello) if len(hello) == _HELLO.size else (-1, b"")
            # Anybody on the host can connect: who does not know the name is no rank.
            if secret == name.encode() and self._ranks.rank < peer < self._ranks.size and peer not in self._sockets:
                self._sockets[peer] = link
                undo.pop_all()

    def _receive(self, peer: int, link: socket.socket, count: int) -> list[int]:
        self._guarded(peer, lambda: await_readable(link, self._deadline, self._ranks.meanwhile))
        data, found, flags, _ = self._guarded(
            peer, lambda: socket.recv_fds(link, 16, MOST_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
        )
        cut_off = bool(flags & socket.MSG_CTRUNC)
        if len(found) != count or cut_off:
            for one in found:
                os.close(one)
            if cut_off and len(found) < count:
                raise DwdpError(_NO_MORE_FILES)
            sent = f"sent {'more than ' if cut_off else ''}{len(found)} descriptors instead of {count}"
            said = "left" if data in (b"", _LEAVING) else sent
            raise RankLost(f"rank {peer} of the group {said} while memory was being exchanged: its own log says why")
        return list(found)

    def _guarded(self, peer: int | None, action: Callable[[], R]) -> R:
        try:
            return action()
        except OSError as error:
            if error.errno == errno.ETOOMANYREFS:  # of this process, not of the other one
                raise DwdpError(_TOO_MANY_ON_THE_WAY) from error
            who = "a rank" if peer is None else f"rank {peer}"
            raise RankLost(
                f"{who} of the group ended, or did not answer within {self._deadline:g} s: {error}"
            ) from error


class _Watcher:
    """A thread that sleeps until another rank says that it leaves, or ends without a word."""

    def __init__(self, sockets: dict[int, socket.socket], rank: int) -> None:
        self.lost: str | None = None
        self._rank = rank
        self._sockets = dict(sockets)
        self._wake, self._stop = os.pipe()
        self._thread = threading.Thread(target=self._run, name="dwdp-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        os.write(self._stop, b"x")  # closing would not wake it where a child was forked, and has the pipe, too
        os.close(self._stop)
        self._thread.join()
        os.close(self._wake)

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._wake)
        peers = {link.fileno(): peer for peer, link in self._sockets.items()}
        for descriptor in peers:
            poll.register(descriptor, select.POLLIN)
        while True:
            for descriptor, _ in poll.poll():
                if descriptor == self._wake:
                    return
                poll.unregister(descriptor)
                if not self._said_goodbye(peers[descriptor]):
                    self.lost = (
                        f"rank {peers[descriptor]} of the group ended: leave the block and start all of its ranks"
                    )

    def _said_goodbye(self, peer: int) -> bool:
        try:
            return self._sockets[peer].recv(16) == _LEAVING
        except OSError:
            return False


def _address(name: str, rank: int) -> bytes:
    """Return an address in the abstract namespace, which leaves no file behind."""
    return f"\0modelexpress-dwdp-{name}-{rank}".encode()


def _user(link: socket.socket) -> int:
    """Return the user id of the process at the other end."""
    return int(struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))[1])


def _close_all(received: Mapping[int, Sequence[int]]) -> None:
    for descriptors in received.values():
        for one in descriptors:
            os.close(one)


def _forget_all() -> None:
    for links in _open:
        links.forget()


os.register_at_fork(after_in_child=_forget_all)
