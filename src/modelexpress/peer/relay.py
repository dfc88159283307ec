"""A relay: a target that passes on what it has verified, while it is still receiving."""

import logging
import threading
from collections.abc import Callable, Sequence

from modelexpress.errors import ModelExpressError
from modelexpress.identity import SourceIdentity
from modelexpress.memory import Region
from modelexpress.peer.material import Exports, Material
from modelexpress.peer.publication import Publication
from modelexpress.peer.shelf import Shelf
from modelexpress.transfer.prefix import Integers, Prefix
from modelexpress.wire.records import Member, ReaderStatus

logger = logging.getLogger(__name__)


class Relay:
    """A material that this worker receives and serves at once; made by `Worker.relay`.

    Until `open`, those who ask for it wait a little. `close` withdraws it, `publish` makes it a source like any other.
    All of it is called by the thread that loads, but `verified`.

    Args:
        shelf: Of the worker.
        identity: Of the material.
        member: The worker as others ask it.
        announce: Publishes a material that is on the shelf.

    Raises:
        ConfigurationError: The worker offers one under the same identity.
    """

    def __init__(
        self, shelf: Shelf, identity: SourceIdentity, member: Member, announce: Callable[[Material], Publication]
    ) -> None:
        self.identity = identity
        self.member = member
        self._shelf = shelf
        self._announce = announce
        self._material: Material | None = None
        self._prefix: Prefix | None = None
        self._exports: Exports | None = None
        self._exporting: threading.Thread | None = None
        shelf.expect(identity.source_id)

    @property
    def chunks(self) -> int:
        """Leading chunks that are verified here."""
        return self._prefix.value if self._prefix is not None else 0

    @property
    def readers(self) -> list[ReaderStatus]:
        """Who reads it, and how far they are."""
        return self._shelf.leases.readers(self.identity.source_id)

    def asks(self, member: Member) -> None:
        """Note which worker is asked for the material, so that the two do not wait for each other."""
        self._shelf.asks(self.identity.source_id, member)

    def reads_from(self, above: tuple[Member, ...]) -> None:
        """Note which worker is read from, and those above that, nearest first: readers ask them when this one dies."""
        self._shelf.reads_from(self.identity.source_id, above)

    def prepare(self, regions: Sequence[Region]) -> None:
        """Open the memory that will be received into, in the background: it takes its time where there is much of it.

        Args:
            regions: Those of the material that `open` is going to be given.
        """

        def export() -> None:
            try:
                self._exports = self._shelf.export(regions)
            except ModelExpressError as error:
                logger.warning("what is received is not passed on: %s", error)

        self._exporting = threading.Thread(target=export, name="mx-relay", daemon=True)
        self._exporting.start()

    def open(self, material: Material, twins: Integers) -> None:
        """Begin to serve.

        What another source had delivered stays, if this is the same content: else readers have to go elsewhere.

        Args:
            material: Where everything will be, with the digests of the source.
            twins: Pairs of chunks that are one and the same memory, see `Prefix`.
        """
        if self._material is not None:
            if self._material.manifest.same_content(material.manifest):
                return
            self._withdraw()
            self._shelf.expect(self.identity.source_id)
            self.prepare(material.regions)
        self._join()
        if self._exports is None:
            self._shelf.remove(self.identity.source_id)
            return
        self._material = material
        self._prefix = Prefix(len(material.manifest.digests), twins=twins)
        self._shelf.add(material, self._prefix, self._exports)
        self._exports = None  # the shelf's now

    def verified(self, numbers: Integers) -> None:
        """Note that chunks are in place and verified, by their numbers in the order of the manifest."""
        if self._prefix is not None:
            self._prefix.mark(numbers)

    def publish(self) -> Publication | None:
        """Go on as a source, now that everything is there; None where it is not, or could not be served."""
        if self._material is None or self._prefix is None or not self._prefix.complete:
            self._withdraw()
            return None
        return self._announce(self._material)

    def close(self) -> None:
        """Withdraw the material: readers go elsewhere. Closing twice is allowed."""
        self._withdraw()

    def _withdraw(self) -> None:
        self._join()
        self._shelf.remove(self.identity.source_id)
        if self._exports is not None:
            self._exports.close()
        self._material = self._prefix = self._exports = None

    def _join(self) -> None:
        if self._exporting is not None:
            self._exporting.join()
            self._exporting = None
