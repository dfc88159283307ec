"""Checkpoints as transformers writes them, with experts one by one, fill models that stack them: whole or in rows."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    FineGrainedFP8Config,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

import modelexpress as mx
from modelexpress.engines.expert_rows import keep_rows
from modelexpress.engines.transformers import load_from_peer
from modelexpress.errors import CheckpointError, ConfigurationError, LoadError
from modelexpress.weights.load import run_strategies
from modelexpress.weights.report import Journal, LoadReport
from modelexpress.weights.strategies import StorageStrategy
from modelexpress.weights.target import Target
from tests.support.dwdp_nursery import Nursery
from tests.support.dwdp_transformers import EXPERTS, build
from tests.support.loading import new_identity

NAMES = ("qwen3_moe", "mixtral", "deepseek_v3", "gpt_oss")
RANGES = [range(EXPERTS), range(3), range(2, 5), range(7, EXPERTS)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[PreTrainedModel, Path]]:
    made: dict[str, tuple[PreTrainedModel, Path]] = {}

    def written(name: str) -> tuple[PreTrainedModel, Path]:
        if name not in made:
            model, folder = build(name), tmp_path_factory.mktemp("experts") / name
            model.save_pretrained(folder)
            made[name] = model, folder
        return made[name]

    return written


def read(model: PreTrainedModel, folder: Path, rows: range | None = None) -> tuple[LoadReport, dict[str, Any]]:
    """Fill a model from a folder, and return what was read, and the rows that it has."""
    chosen = dict(keep_rows(model, rows)) if rows is not None else {}
    return run_strategies(Target(model, rows=chosen), [StorageStrategy(folder, model)], Journal()), chosen


def same(model: PreTrainedModel, whole: PreTrainedModel, rows: dict[str, tuple[int, int]]) -> bool:
    expected = whole.state_dict()
    return all(
        torch.equal(tensor, expected[name][slice(*rows[name])] if name in rows else expected[name])
        for name, tensor in model.state_dict().items()
    )


def other(whole: PreTrainedModel) -> PreTrainedModel:
    """Return such a model with other values."""
    model = type(whole)(whole.config).to(torch.bfloat16)
    for parameter in model.parameters():
        parameter.data.fill_(0.25)
    return model


@pytest.mark.parametrize("rows", RANGES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_rows_are_those_of_the_model_and_nothing_else_is_read(folders: Any, name: str, rows: range) -> None:
    whole, folder = folders(name)
    model = other(whole)
    report, chosen = read(model, folder, rows)
    assert same(model, whole, chosen)
    assert any(".experts.gate_up_proj" in key for key in chosen)
    assert report.nbytes == sum(tensor.nbytes for tensor in model.state_dict().values())
    assert report.notes == ()


def test_experts_in_several_files_and_in_another_dtype(folders: Any, tmp_path: Path) -> None:
    whole, _ = folders("mixtral")
    whole.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    model = other(whole).to(torch.float32)
    _, chosen = read(model, tmp_path, range(1, 4))
    assert same(model, whole.float(), chosen)
    whole.to(torch.bfloat16)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_of_some_experts_from_its_folder(registry: str, folders: Any, name: str) -> None:
    whole, folder = folders(name)
    model = load_from_peer(folder, registry=registry, identity=new_identity(), rows=range(2, 5))
    assert model.dtype is torch.bfloat16
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    rows = {key: (2, 5) for key in model.state_dict() if ".experts." in key and ".shared" not in key}
    assert same(model, whole, rows)


def test_a_model_of_some_experts_from_a_peer(registry: str, folders: Any, tmp_path: Path) -> None:
    whole, folder = folders("mixtral")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    identity, settings = new_identity(), mx.Settings(worker_grpc_port=0)
    source = AutoModelForCausalLM.from_pretrained(folder)  # its rotary frequencies are not in bfloat16
    with mx.publish(source, identity, registry=registry, settings=settings) as publication:
        assert publication.wait_ready(20)
        model = load_from_peer(tmp_path, registry=registry, identity=identity, rows=range(2, 5))
    rows = {key: (2, 5) for key in model.state_dict() if ".experts." in key}
    assert same(model, whole, rows)


def test_a_whole_model_needs_no_help_of_transformers(
    registry: str, folders: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, folder = folders("deepseek_v3")
    monkeypatch.delattr(AutoModelForCausalLM, "from_pretrained")
    model = load_from_peer(folder, registry=registry, identity=new_identity())
    assert same(model, whole, {})


Tensors = dict[str, torch.Tensor]
LAYER = "model.layers.3.mlp.experts"


def _lose(name: str) -> Callable[[Tensors], object]:
    return lambda tensors: [tensors.pop(key) for key in list(tensors) if key.startswith(f"{LAYER}.{name}")]


def _put(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({f"{LAYER}.{name}": change(tensors[f"{LAYER}.{name}"])})


def _stack(tensors: Tensors) -> None:
    tensors[f"{LAYER}.down_proj"] = torch.stack([tensors[f"{LAYER}.{row}.down_proj.weight"] for row in range(EXPERTS)])


DAMAGES: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "an expert": (_lose("6."), r"lacks experts of 'model\.layers\.3.*none of the numbers 6"),
    "the last expert": (_lose("7."), r"lacks experts: it has 7 for 'model\.layers\.3.*and 8 for 'model\.layers\.5"),
    "half of the last expert": (_lose("7.up"), r"of its parts \[7, 8\] are there"),
    "all of a part": (
        lambda tensors: [tensors.pop(key) for key in list(tensors) if ".experts." in key and ".up_proj" in key],
        r"has nothing like 'mlp\.experts\.\*\.up_proj\.weight'",
    ),
    "all of a layer": (_lose(""), r"lacks tensors of the model: 'model\.layers\.3\.mlp\.experts\.down_proj'"),
    "rows of one": (_put("6.gate_proj.weight", lambda old: old[:-1]), r"other shapes or dtypes.*\.6\.gate_proj"),
    "columns of a part": (_put("6.up_proj.weight", lambda old: old[:, :-1]), r"other shapes or dtypes.*\.6\.up_proj"),
    "a dtype": (_put("6.down_proj.weight", torch.Tensor.float), r"other shapes or dtypes.*\.6\.down_proj"),
    "which it is": (
        _put("6.down_proj.weight", lambda old: old.to(torch.float8_e4m3fn)),
        r"other shapes or dtypes.*\.6\.down_proj",
    ),
    "clearness": (_stack, r"stacked, and its rows one by one as well"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("rows", [None, range(2, 5)], ids=["whole", "rows"])
def test_a_checkpoint_that_lacks_something_is_refused_before_anything_changes(
    folders: Any, tmp_path: Path, damage: Callable[[Tensors], object], message: str, rows: range | None
) -> None:
    whole, folder = folders("qwen3_moe")
    tensors = load_file(folder / "model.safetensors")
    damage(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    model = other(whole)
    with pytest.raises(CheckpointError, match=message):
        read(model, tmp_path, rows)
    assert all(bool((parameter == 0.25).all()) for parameter in model.parameters())


def test_experts_of_other_shapes_than_the_models_are_refused(folders: Any) -> None:
    whole, folder = folders("qwen3_moe")
    config = Qwen3MoeConfig(**whole.config.to_dict() | {"moe_intermediate_size": 48})
    with pytest.raises(CheckpointError, match=r"other shapes.*\[8, 80, 64\] in the files, \[8, 96, 64\] in the model"):
        read(Qwen3MoeForCausalLM(config), folder)
    with pytest.raises(CheckpointError, match=r"80, 64\] in the files, \[3, 96, 64\], for rows 2:5, in the model"):
        read(Qwen3MoeForCausalLM(config), folder, range(2, 5))


def test_floats_whose_scale_is_elsewhere_are_not_converted(folders: Any, tmp_path: Path) -> None:
    whole, folder = folders("qwen3_moe")
    tensors = load_file(folder / "model.safetensors")
    small = {key: each.to(torch.float8_e4m3fn) if each.dim() == 2 else each for key, each in tensors.items()}
    save_file(small, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"cannot be converted.*float8_e4m3fn in the files, bfloat16 in the"):
        read(other(whole), tmp_path)


def _quantised(config: Any) -> Any:
    """Return a model of 8-bit floats, with scales of blocks, as the quantiser of transformers leaves it."""
    from transformers.quantizers import AutoHfQuantizer

    model: Any = Qwen3MoeForCausalLM(config).to(torch.bfloat16)
    quantiser = AutoHfQuantizer.from_config(config.quantization_config, pre_quantized=True)
    quantiser.preprocess_model(model=model)
    model.hf_quantizer = quantiser
    return model


def _one_by_one(state: Tensors) -> Tensors:
    apart: Tensors = {}
    for name, tensor in state.items():
        stack, _, kind = name.rpartition(".")
        if not stack.endswith(".experts"):
            apart[name] = tensor
            continue
        what, scale, _ = kind.partition("_scale_inv")
        parts = ("gate_proj", "up_proj") if what == "gate_up_proj" else (what,)
        for row in range(EXPERTS):
            for part, matrix in zip(parts, tensor[row].chunk(len(parts)), strict=True):
                apart[f"{stack}.{row}.{part}.weight{scale}"] = matrix.clone()
    return apart


def test_experts_of_8_bits_have_their_scales(folders: Any, tmp_path: Path) -> None:
    config = Qwen3MoeConfig(**folders("qwen3_moe")[0].config.to_dict())
    config.quantization_config = FineGrainedFP8Config(weight_block_size=(8, 8)).to_dict()
    model = _quantised(config)
    whole: Tensors = {
        name: (tensor if not tensor.is_meta else torch.rand(tensor.shape).to(tensor.dtype)).clone()
        for name, tensor in model.state_dict().items()
    }
    save_file(_one_by_one(whole), tmp_path / "model.safetensors")
    report, chosen = read(model, tmp_path, range(2, 5))
    assert len(chosen) == 12, "two stacks and their scales in each of three layers"
    assert report.notes == ()
    for name, tensor in model.state_dict().items():
        expected = whole[name][2:5] if name in chosen else whole[name]
        assert torch.equal(tensor.view(torch.uint8), expected.contiguous().view(torch.uint8)), name


def test_what_cannot_be_read_row_by_row_is_refused_by_name(tmp_path: Path) -> None:
    from transformers import HrmTextConfig, HrmTextForCausalLM

    config = HrmTextConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_attention_heads=2, head_dim=8, num_layers_per_stack=1
    )
    model = HrmTextForCausalLM(config)
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"gate_proj\.weight' cannot be read.*gate_up_proj\.weight' by \[Chunk"):
        read(model, tmp_path)


def test_releases_of_transformers_that_convert_nothing(folders: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers.conversion_mapping", None)
    whole, folder = folders("gpt_oss")
    model = other(whole)
    read(model, folder)
    assert same(model, whole, {})
    whole, folder = folders("mixtral")
    with pytest.raises(CheckpointError, match="lacks tensors of the model"):
        read(other(whole), folder)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (range(6, 9), "has 8 experts in a layer"),
        (range(0, 8, 2), "has 8 experts in a layer"),
        (range(3, 3), "has 8 experts in a layer"),
        ({"model.norm.weights": (0, 1)}, "of 'model.norm.weights', which it has not"),
        ({"model.norm.weight": (0, 65)}, r"which has the shape \[64\]"),
    ],
    ids=["too many", "apart", "none", "no tensor", "too many rows"],
)
def test_rows_that_the_model_has_not(registry: str, folders: Any, rows: Any, message: str) -> None:
    _, folder = folders("qwen3_moe")
    with pytest.raises(ConfigurationError, match=message):
        load_from_peer(folder, registry=registry, identity=new_identity(), rows=rows)


def test_with_rows_transformers_never_reads_the_whole(registry: str, folders: Any, tmp_path: Path) -> None:
    _, folder = folders("qwen3_moe")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(LoadError, match=r"lacks tensors of the model: 'model\.norm\.weight'") as caught:
        load_from_peer(tmp_path, registry=registry, identity=new_identity(), rows=range(4))
    assert len(caught.value.causes) == 2, "from a peer, and from the folder"


def test_memory_is_that_of_the_share(tmp_path: Path) -> None:
    config = Qwen3MoeConfig(
        vocab_size=32,
        hidden_size=512,
        moe_intermediate_size=1024,
        num_experts=32,
        num_experts_per_tok=2,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
    )
    with torch.device("meta"):
        model = Qwen3MoeForCausalLM(config).to(torch.bfloat16)
    full = {key: torch.ones(each.shape, dtype=each.dtype) for key, each in model.state_dict().items()}
    with torch.no_grad():
        model.to_empty(device="cpu").load_state_dict(full)
    model.save_pretrained(tmp_path)
    assert sum(tensor.nbytes for tensor in full.values()) > 96 << 20
    del full
    with torch.device("meta"):
        part = Qwen3MoeForCausalLM(config).to(torch.bfloat16)
    part.model.rotary_emb = model.model.rotary_emb
    del model
    # From here on the kernel counts the peak anew.
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak()
    report, _ = read(part, tmp_path, range(4, 8))
    grown = _peak() - before
    assert 12 << 20 < report.nbytes < 14 << 20
    assert grown < 2 * report.nbytes + (16 << 20), "the pages of the file that were read count, too"


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10


@pytest.mark.parametrize("name", NAMES)
def test_ranks_that_loaded_their_experts_from_the_folder_share_them(
    nursery: Nursery, folders: Any, tmp_path: Path, name: str
) -> None:
    _, folder = folders(name)
    assert nursery.run(tmp_path, "dwdp_from_folder:share", 2, model=str(folder)) == [[0, 4], [4, 8]]
