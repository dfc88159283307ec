"""What `mx doctor` looks at on the machine itself: Python, packages, memory, digests, accelerators."""

import importlib.util
import os
import platform
import runpy
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from modelexpress.cli.findings import Finding, broken, limited, works
from modelexpress.cli.machine import available_bytes, container_limit, memory_bytes
from modelexpress.cli.nvml import Survey, survey
from modelexpress.errors import ConfigurationError

_GIB = 1 << 30
_FEW_DESCRIPTORS = 1024
_CUDA_BUILD = "install the build of torch for the driver's CUDA version: https://pytorch.org/get-started/locally"

_REQUIRED = ("grpcio", "protobuf", "numpy", "pydantic", "safetensors")
_OPTIONAL = {
    "torch": ("publishing and loading models", "modelexpress[torch]"),
    "grpcio-health-checking": ("`mx serve`", "modelexpress[server]"),
    "prometheus-client": ("metrics of the registry", "modelexpress[server]"),
    "redis": ("a registry on Redis", "modelexpress[redis]"),
    "nixl-cu13": ("RDMA and NVLink between hosts", "modelexpress[nixl]"),
    "transformers": ("`mx demo`", "modelexpress[demo]"),
}


def check_machine() -> Iterator[Finding]:
    """Yield what the machine and the installation are like."""
    yield works("python", "interpreter", f"{platform.python_version()} at {sys.executable}")
    yield from check_packages()
    yield check_digest()
    yield works("machine", "cores", f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} may be used")
    yield check_descriptors()
    gpus = survey()
    yield check_accelerators(gpus)
    if gpus is not None:
        yield check_device_digest()
        yield check_device_arena()
    yield check_memory()
    yield check_arena()
    yield check_shm()


def check_packages() -> Iterator[Finding]:
    """Yield the version of every package that is needed or of use."""
    yield works("python", "modelexpress", _version("modelexpress") or "runs from a source tree that is not installed")
    for name in _REQUIRED:
        found = _version(name)
        if found is None:
            yield broken("python", name, "is not installed", f"pip install {name}")
        else:
            yield works("python", name, found)
    for name, (use, extra) in _OPTIONAL.items():
        found = _version(name)
        if found is None:
            yield limited("python", name, f"is not installed: {use} will not work", f"pip install '{extra}'")
        else:
            yield works("python", name, found)


def check_digest() -> Finding:
    """Return what computes digests here."""
    from modelexpress.transfer.digest import DIGEST_ALGORITHM, implementation

    chosen = implementation()
    if chosen.name == "C":
        return works("digest", DIGEST_ALGORITHM, "computed in C")
    remedy = "install a C compiler, then reinstall modelexpress"
    return limited("digest", DIGEST_ALGORITHM, f"computed in numpy, which is slow: {chosen.reason}", remedy)


def check_device_digest() -> Finding:
    """Return what computes digests of GPU memory; Triton is not imported, which takes a second."""
    if importlib.util.find_spec("triton") is None:
        detail = "triton is not installed: GPU memory can be neither published nor verified"
        return limited("machine", "digests on GPUs", detail, "pip install 'modelexpress[cuda]'")
    return works("machine", "digests on GPUs", f"computed by Triton {_version('triton') or 'of an unknown version'}")


def check_device_arena() -> Finding:
    """Return whether `CudaArena` can be used: its allocator is compiled when the package is installed."""
    if importlib.util.find_spec("modelexpress.memory._arena") is None:
        detail = "not compiled: models lie in as many allocations as torch makes, which slows their first copy down"
        return limited("machine", "arena on GPUs", detail, "install a C compiler, then reinstall modelexpress")
    return works("machine", "arena on GPUs", "CudaArena is compiled")


def check_memory() -> Finding:
    """Return how much memory there is."""
    limit = container_limit()
    bound = f"; the container may use {limit / _GIB:.1f} GiB" if limit is not None else ""
    left = f"{available_bytes() / _GIB:.1f} of {memory_bytes() / _GIB:.1f} GiB are free{bound}"
    return works("memory", "host memory", left)


def check_arena() -> Finding:
    """Return whether memory can be made that other processes can map and not change."""
    from modelexpress.memory import HostArena

    try:
        HostArena(1).close()
    except ConfigurationError as error:
        remedy = "use Linux 5.1 or later, and let the sandbox or container allow memfd_create"
        return broken("memory", "sealed memfd", str(error), remedy)
    return works("memory", "sealed memfd", "memfd_create and F_SEAL_FUTURE_WRITE are there")


def check_shm() -> Finding:
    """Return what /dev/shm is like: not ours to use, but engines beside us need it."""
    folder = Path("/dev/shm")
    if not os.access(folder, os.W_OK):
        remedy = "mount a tmpfs there if an engine beside this package needs it; modelexpress does not"
        return limited("memory", "/dev/shm", "is missing or cannot be written", remedy)
    usage = shutil.disk_usage(folder)
    detail = f"{usage.free / _GIB:.1f} of {usage.total / _GIB:.1f} GiB are free (engines use it, modelexpress does not)"
    return works("memory", "/dev/shm", detail)


def check_descriptors() -> Finding:
    """Return how many files this process may open: each region and each connection takes one."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    detail = f"{soft} may be open at once, {hard} after raising the limit"
    if soft < _FEW_DESCRIPTORS:
        return limited("machine", "file descriptors", detail, f"ulimit -n {min(hard, 65536)}")
    return works("machine", "file descriptors", detail)


def check_accelerators(gpus: Survey | None = None) -> Finding:
    """Return which GPUs there are, and whether torch is built for them; torch is not imported, which takes a second."""
    gpus = gpus or survey()
    if gpus is None:
        remedy = "none is needed for weights in host memory; else install NVIDIA's driver"
        return limited("machine", "accelerators", "there is no GPU, or no driver for it", remedy)
    kinds = Counter(f"{gpu.name} ({gpu.nbytes / _GIB:.0f} GiB)" for gpu in gpus.gpus)
    names = ", ".join(f"{count} × {name}" for name, count in kinds.items())
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    shown = f", of which CUDA_VISIBLE_DEVICES={seen} shows some" if seen is not None else ""
    detail = f"{names}{shown}, driver {gpus.driver}"
    if (torch := _version("torch")) is None:
        return limited("machine", "accelerators", f"{detail}; torch is missing", "pip install 'modelexpress[torch]'")
    if (cuda := _cuda_of_torch()) is None:
        return limited("machine", "accelerators", f"{detail}; torch {torch} is built without CUDA", _CUDA_BUILD)
    return works("machine", "accelerators", f"{detail}; torch {torch} for CUDA {cuda}")


def _cuda_of_torch() -> str | None:
    """Return the version of CUDA that torch is built for; None without torch, or for a build without CUDA."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        return runpy.run_path(str(Path(spec.origin).with_name("version.py"))).get("cuda")
    except OSError:
        return None


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
