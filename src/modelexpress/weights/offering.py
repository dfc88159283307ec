"""What publishing a model and serving a folder have in common. No torch is needed here."""

from contextlib import ExitStack
from pathlib import Path

from modelexpress.peer import Material, Publication, Worker
from modelexpress.settings import Settings
from modelexpress.weights.side_files import list_side_files, read_side_file


def read_files(folder: Path) -> dict[str, bytes]:
    """Return the configuration and tokenizer files of a checkpoint folder by relative path."""
    return {path.as_posix(): read_side_file(folder / path) for path in list_side_files(folder)}


def publish_material(
    material: Material, registry: str | None, worker: Worker | None, settings: Settings
) -> Publication:
    """Publish from `worker`, or from one that ends with the publication."""
    if worker is not None:
        return worker.publish(material)
    with ExitStack() as undo:
        own = undo.enter_context(Worker(registry, settings=settings))
        publication = own.publish(material)
        undo.pop_all()
    publication.close_along(own)
    return publication
