"""Real targets for tests of transports: processes of their own that read an export again and again."""

import sys

from modelexpress.memory import HostArena
from modelexpress.transport import Run
from tests.support.children import Child, say
from tests.support.transport_source import TOKEN, make


class TransportTarget(Child):
    """A process that reads the first region of an export until it is killed; it is reading when this returns."""

    def __init__(self, name: str, descriptor: bytes, nbytes: int) -> None:
        super().__init__("tests.support.transport_target", name, descriptor.decode(), str(nbytes))
        assert self.line() == "reading"


def main(name: str, descriptor: str, nbytes: int) -> None:
    """Read until killed."""
    arena = HostArena(nbytes)
    run = Run(0, 0, arena.region.address, nbytes)
    with make(name) as transport, transport.open(descriptor.encode(), TOKEN) as reader:
        reader.read([run]).wait(20)
        say("reading")
        while True:
            reader.read([run] * 16).wait(60)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
