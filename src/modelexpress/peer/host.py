"""Where this process is: the name of its host for readers, and the address under which others reach it."""

import functools
import ipaddress
import os
import socket
from pathlib import Path

from modelexpress.errors import ConfigurationError


@functools.cache
def host_id() -> str:
    """Return what is the same for all processes that can share memory: the machine's boot id."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def new_worker_id() -> str:
    """Return a new id for one process lifetime of one worker: host, process, and a random part."""
    return f"{socket.gethostname()[:40]}-{os.getpid()}-{os.urandom(4).hex()}"


def is_loopback(host: str) -> bool:
    """Return whether `host` names this machine's loopback interface."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def endpoint(host: str, port: int) -> str:
    """Return HOST:PORT, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def reachable_host(registry: str, configured: str) -> str:
    """Return the host that a worker tells others to reach it under.

    Args:
        registry: HOST:PORT of the registry; the interface that leads there is the one that peers share.
        configured: MX_WORKER_HOST; wins when not empty.

    Raises:
        ConfigurationError: The registry's host name is unknown.
    """
    if configured:
        return configured.strip("[]")
    host, _, port = registry.rpartition(":")
    host = host.strip("[]")
    if is_loopback(host):
        return "127.0.0.1"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, int(port), type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)  # a datagram socket sends nothing: this asks for the route only
            return str(probe.getsockname()[0])
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"no route to the registry '{registry}' ({error}): check MX_SERVER_ADDRESS, or set MX_WORKER_HOST"
        ) from error
