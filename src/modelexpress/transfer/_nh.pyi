import numpy as np
import numpy.typing as npt
from typing_extensions import Buffer

ALGORITHM: str

def digest(data: Buffer, /) -> int: ...
def digest_many(
    addresses: npt.NDArray[np.uint64], lengths: npt.NDArray[np.uint64], digests: npt.NDArray[np.uint64], /
) -> None: ...
def copy_digest_many(
    destinations: npt.NDArray[np.uint64],
    sources: npt.NDArray[np.uint64],
    lengths: npt.NDArray[np.uint64],
    digests: npt.NDArray[np.uint64],
    /,
) -> None: ...
