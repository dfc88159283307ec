"""The RDMA network cards of this host, as the kernel lists them."""

from dataclasses import dataclass
from pathlib import Path

_DEVICES = Path("/sys/class/infiniband")


@dataclass(frozen=True)
class Card:
    """One port of an RDMA network card that is up: its name, its driver, and its line rate in bytes per second."""

    name: str
    driver: str
    bytes_per_second: float


def rdma_cards(devices: Path = _DEVICES) -> tuple[Card, ...]:
    """Return every port that is up, fastest first."""
    ports = devices.glob("*/ports/*") if devices.is_dir() else ()
    found = (_card(port) for port in ports)
    return tuple(sorted((card for card in found if card is not None), key=lambda card: -card.bytes_per_second))


def _card(port: Path) -> Card | None:
    """Return the card of a folder such as mlx5_0/ports/1; None where the port is down."""
    device = port.parent.parent
    try:
        if "ACTIVE" not in (port / "state").read_text():
            return None
        gigabits = float((port / "rate").read_text().split()[0])  # "400 Gb/sec (4X NDR)"
    except (OSError, ValueError, IndexError):
        return None
    return Card(device.name, (device / "device" / "driver").resolve().name, gigabits * 1e9 / 8)
