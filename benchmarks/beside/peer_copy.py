"""The limit: one large copy from device 0 to device 1, both visible here; or from host memory to host memory."""

import torch

from benchmarks.beside.children import say
from benchmarks.beside.tensors import REPETITIONS, common_options, finish, seconds

_BYTES = 8 << 30
_TINY_BYTES = 256 << 20


def main() -> None:
    """Say the best rate."""
    given = common_options().parse_args()
    nbytes = _TINY_BYTES if given.tiny else _BYTES
    places = ("cuda:0", "cuda:1") if given.device == "cuda" else ("cpu", "cpu")
    source, destination = (torch.full((nbytes,), 1, dtype=torch.uint8, device=place) for place in places)

    def copy() -> None:
        destination.copy_(source)
        if given.device == "cuda":
            torch.cuda.synchronize(0)
            torch.cuda.synchronize(1)

    copy()  # lets the devices reach each other
    finish(given.device)
    names = [torch.cuda.get_device_name(0)] if given.device == "cuda" else []
    say(rate=nbytes / min(seconds(copy, given.device) for _ in range(REPETITIONS)), names=names)


if __name__ == "__main__":
    main()
