"""Processes that end, or fork, without closing their transports: no hang, no noise, nothing left behind."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import ctypes, os, sys
from modelexpress.memory import HostArena
from modelexpress.transport import LocalTransport, Run, TcpTransport
arena = HostArena(1 << 20)
target = bytearray(1 << 20)
address = ctypes.addressof(ctypes.c_char.from_buffer(target))
transport = {"local": LocalTransport, "tcp": TcpTransport}[sys.argv[1]]()
export = transport.export([arena.region])
export.grant("token")
reader = transport.open(export.descriptor, "token")
runs = [Run(0, 0, address, 1 << 20)]
reader.read(runs).wait(20)
"""
IN_MID_TRANSFER = PROGRAM + "reader.read(runs * 10_000)\n"
FORKED = (
    PROGRAM
    + """
child = os.fork()
if child == 0:
    export.close(); reader.close(); transport.close()
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
reader.read(runs).wait(20)
with transport.open(export.descriptor, "token") as again:
    again.read(runs).wait(20)
"""
)


@pytest.mark.parametrize("name", ["local", "tcp"])
@pytest.mark.parametrize("program", [PROGRAM, IN_MID_TRANSFER, FORKED], ids=["idle", "in mid-transfer", "forked"])
def test_a_process_ends_in_silence(name: str, program: str, tmp_path: Path) -> None:
    # Python 3.12 warns of every fork of a process that has threads.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program, name]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, env={"XDG_RUNTIME_DIR": str(tmp_path)})
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert not list(tmp_path.rglob("*.sock*"))
