"""Element types of checkpoint files: the tag in a safetensors header, torch's name, and the size.

Source of the tags: the `Dtype` enumeration of the safetensors library, version 0.8. Its two six-bit types
(F6_E2M3, F6_E3M2) are left out because torch has no type that could hold them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

# The format counts elements and bytes in unsigned 64-bit integers, torch in signed ones.
_LARGEST_COUNT = 2**63 - 1


@dataclass(frozen=True)
class StoredType:
    """One element type.

    Args:
        tag: Name in a safetensors header, such as "BF16".
        name: torch's name without "torch.", such as "bfloat16".
        itemsize: Bytes of one torch element.
        packed: Elements of the header in one torch element. The header counts single four-bit numbers,
            torch counts pairs of them, so that the last dimension differs by this factor.
    """

    tag: str
    name: str
    itemsize: int
    packed: int = 1

    def header_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape that the header states for a torch tensor of `shape`.

        Raises:
            ValueError: A packed type has no last dimension to unpack.
        """
        if self.packed == 1:
            return tuple(shape)
        if not shape:
            raise ValueError(f"a {self.name} tensor needs at least one dimension")
        return (*shape[:-1], shape[-1] * self.packed)

    def torch_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape that torch gives to a tensor whose header states `shape`.

        Raises:
            ValueError: The last dimension of a packed type does not fill whole elements.
        """
        if self.packed == 1:
            return tuple(shape)
        if not shape or shape[-1] % self.packed:
            raise ValueError(f"the last dimension of a {self.tag} tensor must be a multiple of {self.packed}")
        return (*shape[:-1], shape[-1] // self.packed)

    def nbytes(self, shape: Sequence[int]) -> int:
        """Return the bytes of a dense tensor of torch `shape`.

        Raises:
            ValueError: A dimension is negative, or the size is beyond what torch can count.
        """
        size = self.itemsize
        for dimension in shape:
            # Checked at every step, as safetensors does: a later zero must not hide an overflow, and a
            # hostile list of large numbers must not make the product slow.
            if dimension < 0 or dimension > _LARGEST_COUNT or size * dimension > _LARGEST_COUNT:
                raise ValueError("a dimension is negative or the size overflows 63 bits")
            size *= dimension
        return size


_TYPES = (
    StoredType("BOOL", "bool", 1),
    StoredType("U8", "uint8", 1),
    StoredType("I8", "int8", 1),
    StoredType("U16", "uint16", 2),
    StoredType("I16", "int16", 2),
    StoredType("U32", "uint32", 4),
    StoredType("I32", "int32", 4),
    StoredType("U64", "uint64", 8),
    StoredType("I64", "int64", 8),
    StoredType("F4", "float4_e2m1fn_x2", 1, packed=2),
    StoredType("F8_E4M3", "float8_e4m3fn", 1),
    StoredType("F8_E4M3FNUZ", "float8_e4m3fnuz", 1),
    StoredType("F8_E5M2", "float8_e5m2", 1),
    StoredType("F8_E5M2FNUZ", "float8_e5m2fnuz", 1),
    StoredType("F8_E8M0", "float8_e8m0fnu", 1),
    StoredType("F16", "float16", 2),
    StoredType("BF16", "bfloat16", 2),
    StoredType("F32", "float32", 4),
    StoredType("F64", "float64", 8),
    StoredType("C64", "complex64", 8),
)

TYPE_BY_TAG: Mapping[str, StoredType] = MappingProxyType({stored.tag: stored for stored in _TYPES})
TYPE_BY_NAME: Mapping[str, StoredType] = MappingProxyType({stored.name: stored for stored in _TYPES})
