"""Run as a module: print what NIXL and its UCX find on this machine, and whether they work, as one JSON object.

A process of its own, because native libraries are loaded and asked, which neither this package nor an engine needs.
The calls of UCX are `ucp_get_version_string`, `uct_query_components` and `uct_component_query` of its public headers.
"""

import ctypes
import json
import mmap
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from modelexpress.errors import TransportError, TransportUnavailable

if TYPE_CHECKING:
    from modelexpress.transport.nixl_agent import Agent

_SECONDS = 10.0
_ANSWER_SECONDS = 2.0
_NAME_BYTES = 16
_NAME_AND_COUNT = 3  # UCT_COMPONENT_ATTR_FIELD_NAME | UCT_COMPONENT_ATTR_FIELD_MD_RESOURCE_COUNT


@dataclass(frozen=True)
class Ucx:
    """What NIXL is like on this machine.

    Args:
        version: UCX's.
        components: Those of UCX that find something here.
        libfabric: Whether NIXL's other backend starts; its plugin comes with NIXL, the libraries it needs do not.
        fault: Why an agent like ours does not start here, or cannot read another one's memory; empty: it can.
    """

    version: str
    components: tuple[str, ...]
    libfabric: bool = False
    fault: str = ""


class _Component(ctypes.Structure):
    _fields_ = (
        ("mask", ctypes.c_uint64),
        ("name", ctypes.c_char * _NAME_BYTES),
        ("resources", ctypes.c_uint),
        ("what_newer_versions_add", ctypes.c_ubyte * 256),
    )


def ask() -> Ucx | str:
    """Return what a process of its own finds out, or why it does not."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "modelexpress.cli.ucx_probe"], capture_output=True, text=True, timeout=_SECONDS
        )
        found = json.loads(done.stdout.splitlines()[-1])
        return Ucx(found["version"], tuple(found["components"]), found["libfabric"], found["fault"])
    except subprocess.TimeoutExpired:
        return f"it does not answer within {_SECONDS:g} s"
    except (OSError, ValueError, IndexError, KeyError, TypeError):
        said = done.stderr.strip().splitlines()
        return said[-1] if said else f"its process ended with status {done.returncode}"


def find() -> Ucx:
    """Return what is found in this process.

    Raises:
        TransportUnavailable: NIXL is not installed, or does not load.
        OSError: It is built without UCX, or in another way than its wheels are.
    """
    from modelexpress.transport.nixl_library import load

    native = load().native
    agent = native.nixlAgent("modelexpress-doctor", native.nixlAgentConfig())
    agent.getPluginParams("UCX")  # loads UCX
    ucp, uct = ctypes.CDLL(_loaded("libucp")), ctypes.CDLL(_loaded("libuct"))
    ucp.ucp_get_version_string.restype = ctypes.c_char_p
    version, components = ucp.ucp_get_version_string().decode(), tuple(sorted(_components(uct)))
    return Ucx(version, components, _starts("LIBFABRIC"), _fault())


def _starts(backend: str) -> bool:
    """Return whether a backend starts. Its plugin being listed says nothing: NIXL lists names of files."""
    from modelexpress.transport.nixl_library import load
    from modelexpress.transport.nixl_native import NativeAgent

    try:
        NativeAgent(load(), f"modelexpress-doctor-{backend}", backend, {}).end()
    except TransportUnavailable:
        return False
    return True


def _fault() -> str:
    """Let one agent like those of loads read a little of another's memory; return why it cannot, or nothing."""
    from modelexpress.memory import HostArena
    from modelexpress.transport.nixl import NixlTransport
    from modelexpress.transport.nixl_agent import Agent

    with ExitStack() as stack:
        try:
            source, target = (stack.enter_context(_ended(Agent())) for _ in range(2))
            arena = stack.enter_context(HostArena(mmap.PAGESIZE, "nixl-trial"))
            offering, reading = (
                stack.enter_context(NixlTransport(stall_timeout=_ANSWER_SECONDS, without_cards=True, agent=agent))
                for agent in (lambda: source, lambda: target)
            )
            export = offering.export([arena.region])
            stack.callback(export.close)
            export.grant("trial")
            reading.open(export.descriptor, "trial").close()
        except TransportError as error:
            return str(error)
    return ""


@contextmanager
def _ended(agent: "Agent") -> Iterator["Agent"]:
    try:
        yield agent
    finally:
        agent.native.end()


def _components(uct: ctypes.CDLL) -> set[str]:
    handles, count = ctypes.POINTER(ctypes.c_void_p)(), ctypes.c_uint()
    if uct.uct_query_components(ctypes.byref(handles), ctypes.byref(count)):
        return set()
    found = set()
    for number in range(count.value):
        component = _Component(mask=_NAME_AND_COUNT)
        status = uct.uct_component_query(ctypes.c_void_p(handles[number]), ctypes.byref(component))
        if status == 0 and component.resources:
            found.add(component.name.decode())
    return found


def _loaded(library: str) -> str:
    """Return the file of a library that this process has loaded."""
    mapped = Path("/proc/self/maps").read_text()
    if (match := re.search(rf"/\S*/{library}[-.]\S*", mapped)) is None:
        raise OSError(f"NIXL has not loaded {library}")
    return match.group()


if __name__ == "__main__":
    try:
        print(json.dumps(asdict(find())))  # noqa: T201 - what a parent reads
    except (TransportUnavailable, OSError) as error:
        sys.exit(str(error))
