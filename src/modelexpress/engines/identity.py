"""What the identities of all engines' weights have in common."""

import hashlib
import json
import platform
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from modelexpress.engines.fingerprint import folder_fingerprint
from modelexpress.settings import Settings


def revision_of(model: str, named: str | None, hf_config: Any, settings: Settings) -> str:
    """Return what tells this checkpoint from others of its name: branches move, and folders are written anew.

    Args:
        model: Name or folder of the checkpoint.
        named: The revision that the engine was told, which may be a branch.
        hf_config: The checkpoint's configuration.
        settings: May name the revision.
    """
    if settings.model_revision:
        return settings.model_revision
    folder = Path(model)
    if folder.is_dir():
        return folder_fingerprint(folder)
    return str(getattr(hf_config, "_commit_hash", None) or named or "")


def gpu_architecture() -> str:
    """Return the architecture of this process's GPU as compilers name it; "" without one."""
    if not torch.cuda.is_available():
        return ""
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}"


def processor_architecture() -> str:
    """Return what code that was compiled for this host's processor may use; "" where the system does not say.

    Compilers are told to use all that the processor can: elsewhere such code may end the process.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    features = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return f"{platform.machine()}-{digest_of(sorted(features.split()))}"


def digest_of(value: Any) -> str:
    """Return 16 hex digits for what an engine was told, of any structure; "" for nothing.

    Of an object that is no data only its type counts: what it prints may hold an address, which each process has anew.
    """
    if not value:
        return ""
    plain = value.to_dict() if hasattr(value, "to_dict") else value
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=_plain).encode()).hexdigest()[:16]


def _plain(value: Any) -> str:
    return str(value) if isinstance(value, (torch.dtype, Path, Enum)) else type(value).__name__
