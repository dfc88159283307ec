"""`local` between containers, as far as namespaces make them: what they must share, and what they need not."""

import json
import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
import torch

import modelexpress as mx
from modelexpress.transport.runtime_directory import listen_privately
from tests.support.sources import SourceProcess, tensors

MEGABYTES = 2
OTHER_NAMESPACES = ["unshare", "--user", "--map-current-user", "--pid", "--ipc", "--uts", "--fork"]
OWN_FOLDER = ["unshare", "--mount", "--fork", "sh", "-c", 'mount -t tmpfs -o mode=700 none "$0" && exec "$@"']


def works(*command: str) -> bool:
    """Return whether this machine lets a test make such namespaces."""
    return shutil.which(command[0]) is not None and subprocess.run([*command], capture_output=True).returncode == 0


def sockets() -> str:
    """Return the folder of this user's sockets."""
    sock, path = listen_privately()
    sock.close()
    path.unlink()
    return str(path.parent)


def load_within(namespaces: list[str], registry: str, identity: mx.SourceIdentity) -> dict[str, Any]:
    """Load in a process that is started within other namespaces, and return what it says."""
    command = [*namespaces, sys.executable, "-m", __name__, registry, identity.model_name]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


@pytest.mark.skipif(not works(*OTHER_NAMESPACES, "true"), reason="namespaces cannot be made here")
def test_processes_of_other_namespaces_may_differ_but_for_the_user(registry: str) -> None:
    identity = mx.SourceIdentity(model_name=f"test/{uuid.uuid4()}")
    with SourceProcess(registry, identity, MEGABYTES, transport="auto"):
        said = load_within(OTHER_NAMESPACES, registry, identity)
    assert said == {"transport": "local", "notes": [], "right": True}


@pytest.mark.skipif(os.geteuid() != 0 or not works("unshare", "--mount", "true"), reason="needs root, to mount")
def test_a_folder_of_sockets_that_is_not_shared_leaves_tcp_with_the_reason(registry: str) -> None:
    identity = mx.SourceIdentity(model_name=f"test/{uuid.uuid4()}")
    with SourceProcess(registry, identity, MEGABYTES, transport="auto"):
        said = load_within([*OWN_FOLDER, sockets()], registry, identity)
    assert (said["transport"], said["right"]) == ("tcp", True)
    assert "socket is not visible from here" in said["notes"][0]


def main(registry: str, name: str) -> None:
    """Load, and say how."""
    model = {name: torch.zeros_like(tensor) for name, tensor in tensors(MEGABYTES).items()}
    report = mx.load(model, mx.SourceIdentity(model_name=name), registry=registry)
    right = all(torch.equal(model[name], tensor) for name, tensor in tensors(MEGABYTES).items())
    sys.stdout.write(json.dumps({"transport": report.transport, "notes": report.notes, "right": right}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
