"""A process that publishes a small material and then ends in the way that it is told.

It prints what it published as a JSON line, waits for a line on standard input, and does what the line says.
"""

import argparse
import json
import os
import signal
import sys
from types import FrameType

from modelexpress.identity import SourceIdentity
from modelexpress.peer import Publication, Worker
from modelexpress.settings import Settings
from tests.support.children import Child, say, told
from tests.support.materials import make_material


class Publisher(Child):
    """Starts the process, and waits until the registry has taken its publication.

    Args:
        registry: HOST:PORT.
        identity: What it publishes; every publisher of an identity publishes the same.
        options: Those of `main`.
    """

    def __init__(self, registry: str, identity: SourceIdentity, *options: str) -> None:
        super().__init__("tests.support.publisher", registry, identity.model_name, *options)
        fields = self.answer()
        self.worker_id: str = fields["worker_id"]
        self.endpoint: str = fields["endpoint"]

    def end(self, what: str) -> int:
        """Tell it how to end, and return its exit status."""
        self.tell(what)
        return self.process.wait(30)

    def signal(self, number: signal.Signals) -> int:
        """Send it a signal that ends it, and return its exit status."""
        self.process.send_signal(number)
        return self.process.wait(30)


def main() -> None:
    """Publish, and end as told."""
    parser = argparse.ArgumentParser()
    parser.add_argument("registry")
    parser.add_argument("name")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--heartbeat", type=float, default=30.0)
    parser.add_argument("--tensors", type=int, default=4)
    parser.add_argument("--handler", choices=["exit", "return", "ignore"])
    given = parser.parse_args()
    _set_handler(given.handler)
    settings = Settings(worker_grpc_port=given.port, heartbeat_interval=given.heartbeat)
    worker = Worker(given.registry, settings=settings)
    material = make_material(given.tensors, identity=SourceIdentity(model_name=given.name))
    publication = worker.publish(material)
    assert publication.wait_ready(20)
    say(json.dumps({"worker_id": worker.worker_id, "endpoint": publication.endpoint}))
    _end(told(), worker, publication)


def _end(how: str, worker: Worker, publication: Publication) -> None:
    """Return, which leaves the rest to the interpreter's end, or do something else first."""
    match how:
        case "exit":
            sys.exit(3)
        case "close":
            say("closing")
            publication.close()
            say("closed")
            told()
        case "fork":
            _fork(worker, publication)


def _fork(worker: Worker, publication: Publication) -> None:
    """Let one child end by itself and one by SIGTERM, both inside the parent's `with` blocks."""
    for number in (0, signal.SIGTERM):
        if os.fork() == 0:
            with worker, publication:
                os.kill(os.getpid(), number)
                sys.exit(0)
        _, status = os.wait()
        say(str(os.waitstatus_to_exitcode(status)))
    told()


def _set_handler(kind: str | None) -> None:
    def handle(number: int, frame: FrameType | None) -> None:
        say("handled")
        if kind == "exit":
            sys.exit(5)

    if kind == "ignore":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    elif kind is not None:
        signal.signal(signal.SIGTERM, handle)


if __name__ == "__main__":
    main()
