"""A process that shares a cache as an engine does, and then ends in the way that it is told."""

import argparse
import json
import os
import sys
import threading

from modelexpress.artifacts.lifecycle import share_when_ready
from modelexpress.identity import SourceIdentity
from modelexpress.settings import Settings
from tests.support.caches import KINDS
from tests.support.children import Child, say, told


class ArtifactSharer(Child):
    """Starts the process, and waits until its cache is offered.

    Args:
        registry: HOST:PORT.
        identity: Base identity; only its model name is used.
        root: Of the cache.
    """

    def __init__(self, registry: str, identity: SourceIdentity, root: object) -> None:
        environment = {"TEST_CACHE": str(root)}
        super().__init__("tests.support.artifact_sharer", registry, identity.model_name, environment=environment)
        self.worker_id: str = self.answer()["worker_id"]


def main() -> None:
    """Share, and end as told: "return" and "exit" leave everything open, "close" does not."""
    parser = argparse.ArgumentParser()
    parser.add_argument("registry")
    parser.add_argument("name")
    given = parser.parse_args()
    settings = Settings(registry=given.registry, worker_grpc_port=0, artifact_transfer=True)
    ready = threading.Event()
    ready.set()
    sharing = share_when_ready(SourceIdentity(model_name=given.name), [KINDS["plain"]], settings, ready)
    assert sharing is not None
    assert sharing.wait_offered(20)
    publication = sharing.publications["plain"]
    assert publication.wait_ready(20)
    say(json.dumps({"worker_id": publication.worker_id}))
    match told():
        case "exit":
            sys.exit(3)
        case "close":
            sharing.close()
            say("closed")
            sys.stdin.readline()
        case "fork":
            if os.fork() == 0:
                sharing.close()
                os._exit(0)
            os.wait()
            say("forked")
            sys.stdin.readline()


if __name__ == "__main__":
    main()
