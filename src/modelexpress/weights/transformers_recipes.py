"""What transformers makes a model's tensors of when it reads a checkpoint, asked of transformers itself."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from modelexpress.weights.catalog import Model
from modelexpress.weights.recipe import Recipe

_ALIGNED = "Force16BytesAlignment"
"""A step that changes no values. Steps are known by their names, as not every release has all of them."""


def recipes_for(model: Model | None, stored: Iterable[str]) -> dict[str, Recipe]:
    """Return for names of a model's tensors what they are made of; those that the checkpoint lacks are left out.

    Models that are not of transformers 5 are stored under their own names.

    Args:
        model: To be filled.
        stored: Names in the checkpoint.
    """
    # Where it has not been imported, no model is of it.
    library = sys.modules.get("transformers.modeling_utils")
    if library is None or not isinstance(model, library.PreTrainedModel):
        return {name: Recipe(((name,),)) for name in stored}
    try:
        gathered, converters = _gather(model, stored)
    except ImportError:
        # Releases of transformers that convert nothing store a model under its own names.
        return {name: Recipe(((name,),)) for name in stored}
    return {name: _recipe(found, converters) for name, found in gathered.items()}


def _gather(model: Any, stored: Iterable[str]) -> tuple[dict[str, dict[str | None, list[str]]], Mapping[str, Any]]:
    """Return what of a checkpoint goes into each tensor, by the pattern of the name, and what is done with patterns."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    steps = get_model_conversion_mapping(model, hf_quantizer=getattr(model, "hf_quantizer", None))
    renamings = [step for step in steps if isinstance(step, WeightRenaming)]
    converters = [step for step in steps if isinstance(step, WeightConverter)]
    own, prefix = model.state_dict(), model.base_model_prefix
    gathered: dict[str, dict[str | None, list[str]]] = {}
    # In the order in which transformers asks: some renamings depend on what they have seen.
    for name in sorted(stored, key=_natural):
        renamed, pattern = rename_source_key(name, renamings, converters, prefix, own)
        if renamed not in own and name in own:
            renamed, pattern = name, None
        if renamed in own:
            gathered.setdefault(renamed, {}).setdefault(pattern, []).append(name)
    return gathered, {pattern: step for step in converters for pattern in step.source_patterns}


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a key by which names are sorted, and numbers in them as numbers: the shorter is the smaller."""
    return [(len(word) if word.isdecimal() else sys.maxsize, word) for word in name.split(".")]


def _recipe(found: Mapping[str | None, list[str]], converters: Mapping[str, Any]) -> Recipe:
    names = tuple(map(tuple, found.values()))
    patterns = [pattern for pattern in found if pattern is not None]
    if not patterns:
        several = f"the checkpoint has it more than once, as {' and '.join(map(repr, names[0]))}"
        return Recipe(names, obstacle=several if len(names[0]) > 1 else "")
    converter = converters[patterns[0]]
    wanted = list(converter.source_patterns)
    if len(patterns) < len(found) or set(patterns) - set(wanted):
        return Recipe(names, obstacle="the checkpoint has it stacked, and its rows one by one as well")
    if lacking := [pattern for pattern in wanted if pattern not in found]:
        return Recipe(names, obstacle=f"the checkpoint has nothing like {' and '.join(map(repr, lacking))}")
    steps = [step for step in converter.operations if type(step).__name__ != _ALIGNED]
    alone = [len(part) for part in names] == [1]
    if alone and (not steps or (len(steps) == 1 and _keeps_what_fits(steps[0]))):
        return Recipe(names)
    if not _stacks(steps, len(wanted)):
        return Recipe(names, obstacle=f"transformers makes it of {names[0][0]!r} by {converter.operations}")
    return Recipe(tuple(tuple(found[pattern]) for pattern in wanted), stacked=True)


def _keeps_what_fits(step: Any) -> bool:
    """Return whether a step leaves what has the shape of the model's tensor. Other shapes are refused later."""
    return type(step).__name__ == "Transpose" and bool(getattr(step, "check_dims", False))


def _stacks(steps: Sequence[Any], parts: int) -> bool:
    """Return whether rows are what is stored, or what is stored in parts, one behind the other."""
    if [type(step).__name__ for step in steps] != ["MergeModulelist", "Concatenate"][: min(parts, 2)]:
        return False
    joined = steps[-1]
    return steps[0].dim == 0 and (
        parts == 1 or (joined.dim == 1 and getattr(joined, "num_shards_attribute", None) is None)
    )
