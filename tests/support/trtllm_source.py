"""A real source of a TensorRT-LLM checkpoint: `mx trtllm publish` as a process of its own."""

from collections.abc import Mapping
from pathlib import Path

from modelexpress.peer import PeerClient
from tests.support.children import Child


class TrtllmSource(Child):
    """Publishes a checkpoint until the block ends.

    Args:
        registry: HOST:PORT.
        folder: The checkpoint.
        name: Of the model.
        environment: Variables of the process.
    """

    def __init__(self, registry: str, folder: Path, name: str, environment: Mapping[str, str] | None = None) -> None:
        options = ("trtllm", "publish", str(folder), "--name", name, "--registry", registry, "--json")
        super().__init__("modelexpress.cli", *options, environment={"MX_WORKER_GRPC_PORT": "0", **(environment or {})})
        fields = self.answer()
        self.source_id: str = fields["source_id"]
        self.endpoints: list[str] = [rank["endpoint"] for rank in fields["ranks"]]

    def read_ranks(self) -> int:
        """Return how many ranks somebody reads at this moment."""
        count = 0
        for endpoint in self.endpoints:
            with PeerClient(endpoint) as client:
                count += bool(client.readers())
        return count
