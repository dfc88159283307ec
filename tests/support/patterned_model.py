"""A model of any size whose content each process computes for itself, on whatever device it uses."""

import torch

MIB = 1 << 20
TENSOR_BYTES = 16 * MIB


def _content(number: int, place: torch.device | str) -> torch.Tensor:
    """Return the content of one tensor: the same on every device."""
    values = torch.arange(TENSOR_BYTES // 2, dtype=torch.int32, device=place)
    return values.mul_(40503).add_(number * 7919).to(torch.int16)


def patterned(megabytes: int, place: str) -> dict[str, torch.Tensor]:
    """Return the model."""
    return {f"tensor.{number}": _content(number, place) for number in range(megabytes * MIB // TENSOR_BYTES)}


def empty(megabytes: int, place: str) -> dict[str, torch.Tensor]:
    """Return room for it, on a device, the host, or the meta device."""
    count = megabytes * MIB // TENSOR_BYTES
    tensors = {f"tensor.{n}": torch.empty(TENSOR_BYTES // 2, dtype=torch.int16, device=place) for n in range(count)}
    if place != "meta":
        clear(tensors)
    return tensors


def clear(model: dict[str, torch.Tensor]) -> None:
    """Forget the content."""
    for tensor in model.values():
        tensor.zero_()


def is_right(model: dict[str, torch.Tensor]) -> bool:
    """Return whether every tensor has its content."""
    contents = ((tensor, _content(number, tensor.device)) for number, tensor in enumerate(model.values()))
    return all(torch.equal(tensor, content) for tensor, content in contents)


def free_bytes(place: str) -> int:
    """Return how much memory of a device nobody uses; 0 for the host, where that says nothing."""
    if place == "cpu":
        return 0
    torch.cuda.synchronize(place)
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(place)[0]
