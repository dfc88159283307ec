"""Models for tests: everything that makes tensors awkward."""

import torch
from torch import nn


class Sample(nn.Module):
    """Everything that makes tensors awkward, in one module."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator)

        self.embed = nn.Embedding(64, 48)
        self.head = nn.Linear(48, 64, bias=False)
        self.transposed = nn.Parameter(random(40, 24).t())
        self.strided = nn.Parameter(random(16, 20)[:, ::2], requires_grad=False)
        self.empty = nn.Parameter(torch.empty(0, 7))
        self.scalar = nn.Parameter(random(1)[0])
        fused = random(3, 32, 8)
        self.query = nn.Parameter(fused[0])
        self.key = nn.Parameter(fused[1])
        self.register_buffer("table", random(33), persistent=False)
        self.register_buffer("count", torch.tensor(seed))
        self.register_buffer("phase", random(10).to(torch.complex64).conj())
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(random(*parameter.shape))
        self.head.weight = self.embed.weight = nn.Parameter(random(64, 48))


def equal(left: nn.Module, right: nn.Module) -> bool:
    pairs = zip(named_tensors(left), named_tensors(right), strict=True)
    return all(a[0] == b[0] and a[1].dtype == b[1].dtype and torch.equal(a[1], b[1]) for a, b in pairs)


def named_tensors(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    named = module.named_parameters(remove_duplicate=False)
    return [*named, *module.named_buffers(remove_duplicate=False)]


def flaw(module: nn.Module) -> None:
    """Change every value, so that whatever is not received shows."""
    with torch.no_grad():
        for _, tensor in named_tensors(module):
            tensor.zero_()


def raw(tensor: torch.Tensor) -> list[list[int]]:
    """The bytes of each element, in order of the elements."""
    size = tensor.element_size()
    storage = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
    index = torch.arange(storage.numel() // size).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
    rows = storage[: storage.numel() // size * size].view(-1, size)
    return [rows[i].tolist() for i in index.flatten().tolist()]
