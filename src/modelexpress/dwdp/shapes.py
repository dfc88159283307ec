"""The experts of a model as numbers: what is stacked in each layer, and how much arithmetic a token takes."""

from collections.abc import Iterator
from dataclasses import dataclass

from modelexpress.errors import ConfigurationError

BITS = {
    "float32": 32,
    "bfloat16": 16,
    "float16": 16,
    "float8_e4m3fn": 8,
    "float8_e5m2": 8,
    "int8": 8,
    "mxfp4": 4,
}
"""Of one element of a weight. That of mxfp4 has a scale of one byte for each 32 elements of a row beside it."""

MXFP4_BLOCK = 32


@dataclass(frozen=True)
class ExpertTensor:
    """A stacked tensor of a layer, of which each expert has an equal part.

    Args:
        name: Within the experts.
        expert_bytes: Of one expert.
    """

    name: str
    expert_bytes: int


@dataclass(frozen=True)
class LayerShape:
    """A layer with experts.

    Args:
        number: In the model.
        num_experts: As many as its gate knows.
        tensors: In the order in which the model has them.
    """

    number: int
    num_experts: int
    tensors: tuple[ExpertTensor, ...]

    @property
    def nbytes(self) -> int:
        """All experts of the layer."""
        return self.num_experts * sum(tensor.expert_bytes for tensor in self.tensors)


@dataclass(frozen=True)
class Work:
    """What one layer takes for one token: arithmetic in FLOP, a multiplication and an addition are two; and traffic.

    Args:
        experts: Those that a token goes through, shared ones included.
        attention: Projections of attention; 0 where they are not known.
        per_key: Attention, for each key that a token looks at.
        window: Keys that it looks at, at most; None: all before it.
        routed: Experts that a gate sends it to: as many rows of grouped products.
        row: Of `experts`, what one of those takes.
        carried: Bytes that it moves through memory between products.
    """

    experts: float
    attention: float = 0.0
    per_key: float = 0.0
    window: int | None = None
    routed: int = 0
    row: float = 0.0
    carried: float = 0.0

    @property
    def other_weights(self) -> float:
        """Bytes of the weights that all tokens share: a weight of 16 bits has two bytes and takes two FLOP."""
        return self.experts - self.routed * self.row + self.attention

    def per_token(self, prompt: int = 0) -> float:
        """Return the arithmetic of a token, on average over a prompt.

        Args:
            prompt: Tokens of each prompt; 0: what depends on it is left out.
        """
        seen = min(prompt, self.window or prompt)
        keys = (seen * (seen + 1) / 2 + (prompt - seen) * seen) / prompt if prompt else 0.0
        return self.experts + self.attention + self.per_key * keys


@dataclass(frozen=True)
class ModelShape:
    """What foreseeing needs to know of a model.

    Args:
        origin: Where the numbers are from, for people.
        layers: Those with experts, in order.
        work: Of each of them; None where that is not known.
    """

    origin: str
    layers: tuple[LayerShape, ...]
    work: Work | None = None

    @property
    def nbytes(self) -> int:
        """All experts."""
        return sum(layer.nbytes for layer in self.layers)


def gated_experts(
    hidden: int, intermediate: int, dtype: str, *, bias: str | None = None, scale_block: tuple[int, int] | None = None
) -> tuple[ExpertTensor, ...]:
    """Return the tensors of experts with a gate: of 2 × intermediate rows and hidden columns, and the other way round.

    Args:
        hidden: Features of a token.
        intermediate: Features within an expert.
        dtype: A key of `BITS`.
        bias: Dtype of a bias of each; None: there is none.
        scale_block: Rows and columns that share a scale in float32; None: there are no scales.

    Raises:
        ConfigurationError: There is no such dtype, or a number is not positive.
    """
    if dtype not in BITS:
        raise ConfigurationError(f"there is no dtype {dtype!r} of experts: use one of {', '.join(BITS)}")
    if min(hidden, intermediate) < 1:
        raise ConfigurationError(f"experts of {intermediate} features on tokens of {hidden}: both are at least 1")
    found = list[ExpertTensor]()
    for name, rows, columns in (("gate_up_proj", 2 * intermediate, hidden), ("down_proj", hidden, intermediate)):
        found += _stored(name, rows, columns, dtype, scale_block)
        if bias is not None:
            found.append(ExpertTensor(f"{name}_bias", rows * BITS[bias] // 8))
    return tuple(found)


def gated_flop(hidden: int, intermediate: int, experts: float) -> float:
    """Return the arithmetic of a token that goes through so many experts with a gate: 3 products, 2 FLOP a weight."""
    return 2 * 3 * hidden * intermediate * experts


def carried_bytes(hidden: int, inner: int, routed: int) -> int:
    """Return what a token moves through memory between products, in 16 bits.

    Two norms read and write it, two residuals read two and write one. It is read once and written for each of its
    experts, and the other way round behind them. Gates read two features for each that they write.

    Args:
        hidden: Features of a token.
        inner: Features within all experts that it goes through.
        routed: Experts that a gate sends it to.
    """
    return 2 * (hidden * (2 * 2 + 2 * 3 + 2 * (routed + 1)) + 3 * inner)


def _stored(
    name: str, rows: int, columns: int, dtype: str, scale_block: tuple[int, int] | None
) -> Iterator[ExpertTensor]:
    if dtype == "mxfp4":
        yield ExpertTensor(f"{name}_blocks", -(-rows * columns // 2))
        yield ExpertTensor(f"{name}_scales", rows * -(-columns // MXFP4_BLOCK))
        return
    yield ExpertTensor(name, rows * columns * BITS[dtype] // 8)
    if scale_block is not None:
        yield ExpertTensor(f"{name}_scale_inv", -(-rows // scale_block[0]) * -(-columns // scale_block[1]) * 4)
