"""Stands in for SGLang's compiled kernels, which have no build without CUDA: names can be imported, not called."""

from typing import Any


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)

    def stand_in(*arguments: object, **options: object) -> None:
        raise NotImplementedError(f"sgl_kernel.{name} is a stand-in: there are no compiled kernels on this machine")

    return stand_in
