"""Digests of chunks: the same number on every host and device for the same bytes.

The algorithm is defined, with its collision bound, in `docs/digest.md`. Here it runs in C (`_nh.c`), or in
numpy where the package was installed without a compiler. It detects damage; it is no defence against somebody
who chooses the bytes, because its keys are public.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from modelexpress.transfer import digest_numpy

if TYPE_CHECKING:
    from typing_extensions import Buffer

Column: TypeAlias = npt.NDArray[np.uint64]

DIGEST_ALGORITHM: Final = digest_numpy.ALGORITHM


@dataclass(frozen=True)
class Implementation:
    """What computes digests in this process: `C`, or `numpy` and the reason why not C."""

    name: Literal["C", "numpy"]
    reason: str


class _Functions(Protocol):
    """What `_nh` and `digest_numpy` have in common."""

    def digest(self, data: "Buffer", /) -> int: ...

    def digest_many(self, addresses: Column, lengths: Column, digests: Column, /) -> None: ...

    def copy_digest_many(self, destinations: Column, sources: Column, lengths: Column, digests: Column, /) -> None: ...


def digest(data: "Buffer") -> int:
    """Digest of the bytes of a buffer.

    Args:
        data: Any C-contiguous buffer: bytes, a memoryview, a numpy array.

    Returns:
        A number below 2^61 - 1; 0 for no bytes.

    Raises:
        TypeError: `data` has no buffer.
        BufferError: `data` is not C-contiguous.

    Example:
        >>> hex(digest(b"weights"))
        '0x733699ca65a7d67'
    """
    view = memoryview(data)
    if not view.c_contiguous:
        raise BufferError("a digest needs C-contiguous bytes: digest a contiguous copy")
    return _functions.digest(view)


def digest_many(addresses: Column, lengths: Column) -> Column:
    """Digests of ranges of this process's memory, without the GIL for the whole call.

    The caller vouches that every range is readable until the call returns. A call cannot be interrupted: keep
    it below a few gigabytes, at some 15 GB/s.

    Args:
        addresses: First byte of each range; any alignment.
        lengths: Bytes of each range; 0 is allowed.

    Returns:
        One digest per range.

    Raises:
        TypeError: An argument is not a uint64 array.
        ValueError: The arrays are not columns of one length, or a range starts at address 0 or passes the
            end of the address space.
    """
    addresses, lengths = columns(addresses, lengths)
    check_ranges(addresses, lengths)
    digests = np.empty(len(lengths), dtype=np.uint64)
    _functions.digest_many(addresses, lengths, digests)
    return digests


def copy_digest_many(destinations: Column, sources: Column, lengths: Column) -> Column:
    """Copies ranges of this process's memory and digests what arrived, without the GIL for the whole call.

    Each piece is digested from the destination right after it was written, while it is still in cache, so
    that checking costs little memory traffic. The caller vouches for every range as in `digest_many`.

    Args:
        destinations: First byte that each range is copied to; any alignment.
        sources: First byte of each range; any alignment.
        lengths: Bytes of each range; 0 is allowed.

    Returns:
        One digest per range, of its destination's bytes.

    Raises:
        TypeError: As `digest_many`.
        ValueError: As `digest_many`, or a range overlaps its own destination.
    """
    destinations, sources, lengths = columns(destinations, sources, lengths)
    check_ranges(destinations, lengths)
    check_ranges(sources, lengths)
    apart = (destinations + lengths <= sources) | (sources + lengths <= destinations)
    _refuse(~apart & (lengths > 0), "overlaps its destination")
    digests = np.empty(len(lengths), dtype=np.uint64)
    _functions.copy_digest_many(destinations, sources, lengths, digests)
    return digests


def implementation() -> Implementation:
    """What computes digests in this process, for `mx doctor`."""
    return _implementation


def columns(*arrays: Column) -> tuple[Column, ...]:
    """The arrays as contiguous columns; a field of a structured array comes as a strided one.

    Raises:
        TypeError: One is not a uint64 array.
        ValueError: They are not columns of one length.
    """
    for array in arrays:
        if not isinstance(array, np.ndarray) or array.dtype != np.uint64:
            found = getattr(array, "dtype", type(array).__name__)
            raise TypeError(f"addresses and lengths are numpy arrays of uint64, not {found}")
        if array.shape != (arrays[0].size,):
            raise ValueError("addresses and lengths are columns of the same length")
    return tuple(np.ascontiguousarray(array) for array in arrays)


def check_ranges(addresses: Column, lengths: Column) -> None:
    """Raise ValueError if a range starts at address 0 or passes the end of the address space."""
    _refuse((addresses == 0) & (lengths > 0), "starts at address 0")
    _refuse(addresses + lengths < addresses, "passes the end of the address space")


def _refuse(wrong: npt.NDArray[np.bool_], what: str) -> None:
    if wrong.any():
        raise ValueError(f"range {int(wrong.argmax())} {what}")


def _choose() -> tuple[_Functions, Implementation]:
    try:
        from modelexpress.transfer import _nh
    except ImportError as error:
        return digest_numpy, Implementation("numpy", f"{error}; reinstall with a C compiler for speed")
    if _nh.ALGORITHM != DIGEST_ALGORITHM:
        reason = f"the compiled extension computes {_nh.ALGORITHM}, not {DIGEST_ALGORITHM}; reinstall"
        return digest_numpy, Implementation("numpy", reason)
    return _nh, Implementation("C", "")


_functions, _implementation = _choose()
