"""What `mx doctor` looks at around this machine: the registry, the worker's port, the settings."""

import difflib
import os
import socket
import time
from collections.abc import Iterator, Mapping

from pydantic import ValidationError

from modelexpress.cli.findings import Finding, limited, works
from modelexpress.errors import ModelExpressError, RegistryUnreachable
from modelexpress.settings import Settings, has_effect, used_instead, variables

_PATIENCE = 1.0
"""Seconds that the registry gets to answer."""

_PREFIXES = ("MX_", "MODEL_EXPRESS_")


def check_registry(settings: Settings) -> Finding:
    """Return whether the registry answers, and how fast."""
    from modelexpress.client import Client

    name = settings.registry
    try:
        with Client(settings.registry, timeout=_PATIENCE) as client:
            client.list_sources(limit=1)
            started = time.perf_counter()  # the call before has connected
            client.list_sources(limit=1)
            seconds = time.perf_counter() - started
    except RegistryUnreachable:
        remedy = "start one with `mx serve`, or set MODEL_EXPRESS_URL to where one runs"
        return limited("registry", name, f"does not answer within {_PATIENCE:g} s", remedy)
    except ModelExpressError as error:
        return limited("registry", name, str(error), "check MODEL_EXPRESS_URL, the token and the TLS files")
    return works("registry", name, f"answers in {seconds * 1000:.1f} ms")


def check_worker_port(settings: Settings, host: str = "127.0.0.1") -> Finding:
    """Return whether the worker server of device 0 could listen on its port."""
    port = settings.worker_grpc_port
    if port == 0:
        return works("worker", "port", "any free one is used")
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        remedy = "a source here will use any free port; set MX_WORKER_GRPC_PORT where a firewall needs a known one"
        return limited("worker", f"port {port}", f"cannot be listened on: {error}", remedy)
    return works("worker", f"port {port}", "is free")


def check_settings(environ: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """Yield every variable of ours that is set, malformed and unknown ones as such."""
    known = [variable for variable, *_ in variables()]
    for variable, value in sorted(environ.items()):
        if variable in known:
            yield _check_variable(variable, value)
        elif variable.startswith(_PREFIXES):
            near = difflib.get_close_matches(variable, known, n=1)
            remedy = f"did you mean {near[0]}?" if near else "see docs/reference-settings.md for what there is"
            yield limited("settings", variable, "is no setting of this version", remedy)
    if not any(variable in known for variable in environ):
        yield works("settings", "all", "at their defaults")


def _check_variable(variable: str, value: str) -> Finding:
    try:
        Settings.model_validate({variable: value} if value.strip() else {})
    except ValidationError as error:
        problem = error.errors()[0]["msg"]
        detail = f"{value!r} is not usable ({problem}); {used_instead(variable)}"
        return limited("settings", variable, detail, f"unset {variable}, or correct it")
    if value.strip() and not has_effect(variable):
        return limited("settings", variable, "is without effect in this version", f"unset {variable}")
    return works("settings", variable, value)
