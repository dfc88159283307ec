"""Real targets for tests of transports: processes of their own that read an export again and again."""

import subprocess
import sys
from types import TracebackType
from typing import Self

from modelexpress.memory import HostArena
from modelexpress.transport import Run
from tests.support.transport_source import TOKEN, make


class TransportTarget:
    """A process that reads the first region of an export until it is killed; it is reading when this returns."""

    def __init__(self, name: str, descriptor: bytes, nbytes: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.transport_target", name, descriptor.decode(), str(nbytes)],
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"reading\n"

    def kill(self) -> None:
        """Kill the process as the kernel would."""
        self.process.kill()
        self.process.wait(20)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        if self.process.stdout is not None:
            self.process.stdout.close()


def main(name: str, descriptor: str, nbytes: int) -> None:
    """Read until killed."""
    arena = HostArena(nbytes)
    run = Run(0, 0, arena.region.address, nbytes)
    with make(name) as transport, transport.open(descriptor.encode(), TOKEN) as reader:
        reader.read([run]).wait(20)
        sys.stdout.write("reading\n")
        sys.stdout.flush()
        while True:
            reader.read([run] * 16).wait(60)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
