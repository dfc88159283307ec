"""Taking steps back: in reverse order, all of them, whatever goes wrong on the way."""

from collections.abc import Callable

from modelexpress.dwdp.interrupts import held_back


class Undo:
    """Steps to take back. Where several fail, the first failure is what is raised, and it tells of the others."""

    def __init__(self) -> None:
        self._steps: list[Callable[[], object]] = []

    def add(self, step: Callable[[], object]) -> None:
        """Do this before everything that was added earlier."""
        self._steps.append(step)

    def run(self, cause: BaseException | None = None) -> None:
        """Take all steps back; a second call has nothing to do. Interrupts wait until all are.

        Args:
            cause: Why, if something failed: it gets notes of what fails here, and the caller raises it.

        Raises:
            BaseException: The first failure of a step, where there is no cause.
        """
        first = cause
        with held_back():
            while self._steps:
                try:
                    self._steps.pop()()
                except BaseException as error:  # noqa: BLE001 -- an exit must not leave the other steps undone
                    if first is None:
                        first = error
                    else:
                        first.add_note(f"while this was cleaned up: {type(error).__name__}: {error}")
            if first is not None and first is not cause:
                raise first
