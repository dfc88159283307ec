"""What `mx doctor` says of transports: which of them work here, NIXL's trial included, and why the others do not."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from modelexpress.cli.findings import Finding, broken, limited, works
from modelexpress.cli.ucx_probe import Ucx, ask
from modelexpress.settings import Settings
from modelexpress.transport.nixl_library import missing


@dataclass(frozen=True)
class Ways:
    """The transports that loads would use here, best first, why they would not use the others, and NIXL's trial.

    Args:
        names: Best first.
        reasons: Why the others are not used, by name.
        nixl: What the trial found, or why it could not be made; None: NIXL is not installed.
        only: The one transport that MX_TRANSPORT asks for; empty: it asks for none.
    """

    names: tuple[str, ...]
    reasons: tuple[tuple[str, str], ...]
    nixl: Ucx | str | None = None
    only: str = ""

    @classmethod
    def find(cls, settings: Settings) -> "Ways":
        """Return what is found in this process, and in one of its own that tries NIXL."""
        from modelexpress.transport import available

        selection = available(settings)
        for transport in selection.transports:
            transport.close()
        names = tuple(transport.name for transport in selection.transports)
        nixl = ask() if missing() is None else None
        reasons = selection.reasons
        if "nixl" in names and (fault := _fault(nixl)):
            names = tuple(name for name in names if name != "nixl")
            reasons = (*reasons, ("nixl", fault))
        return cls(names, reasons, nixl, "" if settings.transport == "auto" else settings.transport)

    @cached_property
    def why(self) -> dict[str, str]:
        """The reasons by name."""
        return dict(self.reasons)


def _fault(nixl: Ucx | str | None) -> str:
    """Return why NIXL fails though it is installed; empty where it works."""
    if isinstance(nixl, str):
        return f"its trial failed: {nixl}"
    return nixl.fault if nixl is not None else ""


def check_transports(ways: Ways) -> Iterator[Finding]:
    """Yield every transport, and why it cannot be used where it cannot."""
    for name in ways.names:
        yield works("transport", name, "can be used")
    for name, reason in ways.reasons:
        yield limited("transport", name, reason, _remedy(reason))
    if not ways.names:
        yield broken("transport", "any", "none can be used", "mend one of the transports above")


def _remedy(reason: str) -> str:
    if "MX_TRANSPORT" in reason:
        return "unset MX_TRANSPORT, unless only one transport is to be used"
    return "see the reason; the other transports are used instead"
