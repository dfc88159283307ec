"""What `mx doctor` says of the ways of bytes: between GPUs, through network cards, and which of them a load takes."""

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from modelexpress.cli.checkup_transports import Ways
from modelexpress.cli.findings import Finding, limited, works
from modelexpress.cli.nvml import Link, Survey, survey
from modelexpress.cli.ucx_probe import Ucx
from modelexpress.transport.nixl_cards import Card, rdma_cards

_AREA = "links"
_RDMA = Path("/sys/class/infiniband")
_NETWORK = Path("/sys/class/net")
_GPU_COMPONENT = "cuda"


def check_links(ways: Ways) -> Iterator[Finding]:
    """Yield what connects this host's GPUs, and this host with others, and what loads would use."""
    gpus = survey()
    if gpus is not None and gpus.links:
        yield check_gpu_links(gpus)
    yield check_rdma()
    yield works(_AREA, "network", _listed(network_interfaces()) or "no interface is up")
    if ways.nixl is not None:
        yield check_ucx(ways.nixl, gpus)
    yield from check_ways(ways, gpus, rdma_cards())


def check_gpu_links(gpus: Survey) -> Finding:
    """Return how each two GPUs of the host reach each other."""
    kinds: dict[Link, list[str]] = defaultdict(list)
    for one, other, link in gpus.links:
        kinds[link].append(f"{one}–{other}")
    every = len(gpus.links)
    said = "; ".join(
        f"{kind.value}: {'all' if len(pairs) == every else ', '.join(pairs)}" for kind, pairs in kinds.items()
    )
    detail = f"{said} (NVLinks up: {', '.join(str(gpu.nvlinks) for gpu in gpus.gpus)})"
    if Link.NONE in kinds:
        remedy = "loads between those go through host memory; see `nvidia-smi topo -p2p r` for what is in the way"
        return limited(_AREA, "between GPUs", detail, remedy)
    return works(_AREA, "between GPUs", detail)


def check_rdma(devices: Path = _RDMA) -> Finding:
    """Return which ports of RDMA network cards there are, and how fast they are."""
    up = rdma_cards(devices)
    every = sorted(port.parent.parent.name for port in devices.glob("*/ports/*")) if devices.is_dir() else []
    if not every:
        return works(_AREA, "RDMA cards", "none")
    down = [name for name in every if name not in {card.name for card in up}]
    parts = [_card(card) for card in up] + [f"{name} is down" for name in down]
    if not up:
        return limited(_AREA, "RDMA cards", ", ".join(parts), "bring a port up: `rdma link` shows its state")
    return works(_AREA, "RDMA cards", ", ".join(parts))


def network_interfaces(folder: Path = _NETWORK) -> dict[str, float | None]:
    """Return the interfaces that are up and have a device behind them, with their Gbit/s; None: it is not known."""
    found: dict[str, float | None] = {}
    for interface in sorted(folder.glob("*")) if folder.is_dir() else []:
        if (interface / "device").exists() and _read(interface / "operstate") == "up":
            megabits = _read(interface / "speed")
            found[interface.name] = int(megabits) / 1000 if megabits.isdecimal() else None
    return found


def check_ucx(ucx: Ucx | str, gpus: Survey | None) -> Finding:
    """Return what NIXL can use of this machine."""
    if isinstance(ucx, str):
        remedy = "reinstall it: pip install --force-reinstall 'modelexpress[nixl]'; other transports do not need it"
        return limited(_AREA, "NIXL", f"cannot be asked: {ucx}", remedy)
    libfabric = "; libfabric starts, too" if ucx.libfabric else ""
    restricted = f", which UCX_TLS={os.environ['UCX_TLS']} restricts" if "UCX_TLS" in os.environ else ""
    detail = f"UCX {ucx.version} finds {', '.join(ucx.components) or 'nothing'}{restricted}{libfabric}"
    if ucx.fault:
        return limited(_AREA, "NIXL", f"{detail}; {ucx.fault}", "mend that; other transports do not need it")
    if gpus is not None and not any(name.startswith(_GPU_COMPONENT) for name in ucx.components):
        remedy = "install the build of NIXL for the driver's CUDA version: nixl-cu12 or nixl-cu13"
        return limited(_AREA, "NIXL", f"{detail}; it cannot read the memory of GPUs", remedy)
    return works(_AREA, "NIXL", detail)


def check_ways(ways: Ways, gpus: Survey | None, cards: tuple[Card, ...]) -> Iterator[Finding]:
    """Yield, in a sentence each, what a load within this host and one from another host would use, and why."""
    if ways.names:
        yield works(_AREA, "within this host", _within_host(ways, gpus))
    if "nixl" in ways.names and cards:
        yield works(_AREA, "between hosts", _by_card(cards, gpus))
    elif "tcp" in ways.names:
        yield works(_AREA, "between hosts", _by_tcp(ways.why.get("nixl", "no RDMA network card of this host is up")))
    else:
        reason = "; ".join(f"{name}: {why}" for name, why in ways.reasons if name != "local")
        remedy = "mend one of nixl and tcp, unless all loads stay on this host"
        yield limited(_AREA, "between hosts", f"nothing can be loaded ({reason})", remedy)


def _within_host(ways: Ways, gpus: Survey | None) -> str:
    first = ways.names[0]
    if first == ways.only != "local":
        return f"{first}, as MX_TRANSPORT asks for it and for nothing else"
    if first != "local":
        why = ways.why.get("local")
        return f"{first}, {f'as `local` cannot be used: {why}' if why else 'as MX_TRANSPORT_FIRST asks for it'}"
    host = "local: the kernel copies host memory from one process's pages to the other's"
    if gpus is None:
        return host
    kinds = {link for _, _, link in gpus.links}
    way = next((kind.value for kind in (Link.NVLINK, Link.PCIE) if kind in kinds), "the GPU's own memory")
    rest = ", where the two reach each other" if len(kinds) > 1 else ""
    return f"{host}; memory of GPUs is mapped by CUDA and copied over {way}{rest}"


def _by_card(cards: tuple[Card, ...], gpus: Survey | None) -> str:
    efa = any(card.driver == "efa" for card in cards)
    straight = ", to and from the memory of GPUs where the cards reach it" if gpus is not None else ""
    return f"nixl by {'libfabric' if efa else 'UCX'} over {_card(cards[0])}{straight}"


def _by_tcp(reason: str) -> str:
    interfaces = _listed(network_interfaces())
    return f"tcp{f' over {interfaces}' if interfaces else ''}, because nixl cannot be used: {reason}"


def _card(card: Card) -> str:
    return f"{card.name} ({card.driver}) {card.bytes_per_second * 8 / 1e9:g} Gbit/s"


def _listed(interfaces: Mapping[str, float | None]) -> str:
    return ", ".join(
        f"{name} {f'{gigabits:g} Gbit/s' if gigabits is not None else '(speed unknown)'}"
        for name, gigabits in interfaces.items()
    )


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""  # virtual interfaces have no speed
