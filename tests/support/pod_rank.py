"""A rank of a pod for tests: it brings a cache when it is told to, and says what came of it."""

import argparse
import json
import sys

from modelexpress.artifacts.lifecycle import bring
from modelexpress.identity import SourceIdentity
from modelexpress.settings import Settings
from tests.support.caches import KINDS
from tests.support.children import Child, say


class PodRank(Child):
    """Starts the process; it waits for a line before it brings anything.

    Args:
        registry: HOST:PORT.
        identity: Base identity; only its model name is used.
        root: Of the cache, which all ranks share.
    """

    def __init__(self, registry: str, identity: SourceIdentity, root: object) -> None:
        environment = {"TEST_CACHE": str(root)}
        super().__init__("tests.support.pod_rank", registry, identity.model_name, environment=environment)
        assert self.line() == "ready"


def main() -> None:
    """Bring, and print outcome and reason as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("registry")
    parser.add_argument("name")
    given = parser.parse_args()
    settings = Settings(
        registry=given.registry, artifact_transfer=True, chunk_bytes=1 << 20, stall_timeout=2, source_query_timeout=2
    )
    say("ready")
    sys.stdin.readline()
    with bring(SourceIdentity(model_name=given.name), [KINDS["plain"]], settings) as brought:
        (cache,) = brought.caches
        outcome = cache.report.outcome.value if cache.report else ""
        say(json.dumps({"outcome": outcome, "reason": cache.reason}))
    sys.stdin.readline()


if __name__ == "__main__":
    main()
