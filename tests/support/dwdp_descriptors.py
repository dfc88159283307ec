"""Cases in which descriptors of memory do not arrive: ranks that may open no more files, or send more than was said."""

import ctypes
import os
import resource
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext

import torch.distributed as dist

from modelexpress.dwdp import DwdpConfig, DwdpManager, links
from modelexpress.dwdp.ranks import join
from modelexpress.errors import DeviceError, DwdpError
from tests.support.dwdp_life import Possessions, Sharing
from tests.support.dwdp_nursery import Rank
from tests.support.waiting import wait_until

DEADLINE = 20.0
MOST_FILES = 200
"""That set-up is given before it has to have enough of them."""

_CAPABILITY_VERSION = 0x20080522


def starved(rank: Rank, loaded: str) -> list[str]:
    """Let rank 1 set up with 0, 1, 2, … files that it may open; return what each rank was told until it was enough."""
    sharing = Sharing(rank, loaded=loaded, layers=2)
    sharing.once()
    told = list[str]()
    for files in range(MOST_FILES):
        dist.barrier()
        begun = time.monotonic()
        with sharing.leaving_nothing(), DwdpManager(sharing.config, deadline=DEADLINE) as manager:
            manager.add_all_layers()
            try:
                with _may_open(files) if rank.number == 1 else nullcontext():
                    manager.setup(sharing.model)
                return told
            except (DeviceError, DwdpError) as error:
                told.append(f"{type(error).__name__}: {error}" if rank.number == 1 else type(error).__name__)
                del error
        assert time.monotonic() - begun < DEADLINE, "it waited for a rank that had given up"
    raise AssertionError("it never came to an end")


def swapped(rank: Rank, counts: Sequence[int], files: int = 1000, most: int = links.MOST_DESCRIPTORS) -> str:
    """Pass descriptors; return what this rank was told, or "".

    Args:
        rank: This one.
        counts: How many each rank sends; it takes the others to send as many.
        files: How many rank 1 may open while it sends and receives.
        most: That rank 1 sends in a message.
    """
    if rank.number == 1:
        vars(links)["MOST_DESCRIPTORS"] = most
    ranks = join(DwdpConfig(rank.world, 1, 1), deadline=DEADLINE)
    before, told = Possessions.now(), ""
    with ExitStack() as stack, closing(links.Links(ranks, DEADLINE)) as connections:
        sent = [os.memfd_create("modelexpress-vmm") for _ in range(counts[rank.number])]
        for descriptor in sent:
            stack.callback(os.close, descriptor)
        try:
            with _may_open(files) if rank.number == 1 else nullcontext():
                received = connections.swap(sent)
            for peer, found in received.items():
                assert len(found) == counts[peer]
                for descriptor in found:
                    os.close(descriptor)
        except DwdpError as error:
            told = f"{type(error).__name__}: {error}"
            del error
        ranks.gather(True)  # who was told nothing does not leave while others look
    before.check_not_exceeded()
    return told


def on_the_way(rank: Rank, descriptors: int) -> str:
    """Let rank 1 send while nobody receives, as a user who may have few descriptors on the way; see `swapped`.

    Args:
        rank: This one.
        descriptors: That each sends; to one rank they are too many already.
    """
    ranks = join(DwdpConfig(rank.world, 1, 1), deadline=DEADLINE)
    before, told = Possessions.now(), ""
    with ExitStack() as stack, closing(links.Links(ranks, DEADLINE)) as connections:
        sent = os.memfd_create("modelexpress-vmm")
        stack.callback(os.close, sent)
        if rank.number == 1:
            _drop_capabilities()  # with them, any number may be on the way
        else:
            wait_until((rank.folder / "told-1").exists, DEADLINE)
        try:
            with _may_open(0) if rank.number == 1 else nullcontext():
                connections.swap([sent] * descriptors)
        except DwdpError as error:
            told = f"{type(error).__name__}: {error}"
            del error
        rank.reached("told")
    before.check_not_exceeded()
    return told


def _drop_capabilities() -> None:
    """Give up what the superuser may do beyond others."""
    header, nothing = struct.pack("Ii", _CAPABILITY_VERSION, 0), bytes(24)
    assert ctypes.CDLL(None, use_errno=True).capset(header, nothing) == 0, os.strerror(ctypes.get_errno())


@contextmanager
def _may_open(files: int) -> Iterator[None]:
    """Let this process open so many files more than it has, and no others."""
    usual = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The list has the descriptor that it was read by, too, which is closed by now.
    taken = {int(name) for name in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{name}")}
    limit = free = 0
    while free < files or limit in taken:
        free += limit not in taken
        limit += 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, usual[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, usual)
