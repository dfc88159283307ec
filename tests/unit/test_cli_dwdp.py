"""`mx dwdp plan`: for options, for a folder with and without safetensors files, as a table, a chart and JSON."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from modelexpress.cli.app import app
from modelexpress.errors import ModelExpressError
from tests.support.commands import run

SHAPES = ("--experts", 128, "--hidden", 2048, "--intermediate", 768, "--layers", 48, "--top-k", 8)
CONFIG = {
    "model_type": "qwen3_moe",
    "hidden_size": 256,
    "moe_intermediate_size": 512,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "dtype": "bfloat16",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder with a configuration alone."""
    path = tmp_path / "some-model"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    return path


def planned(*arguments: object) -> dict[str, Any]:
    ended = CliRunner().invoke(app, ["dwdp", "plan", "--json", *map(str, arguments)])
    assert ended.exit_code == 0, ended.output
    found: dict[str, Any] = json.loads(ended.output)
    return found


def refused(*arguments: object) -> str:
    ended = CliRunner().invoke(app, ["dwdp", "plan", *map(str, arguments)])
    assert isinstance(ended.exception, ModelExpressError), ended.output
    assert ended.output == ""
    return str(ended.exception)


def test_shapes_as_options() -> None:
    found = planned(*SHAPES)
    assert found["remote_bytes_per_layer"] == 96 * 3 * 2048 * 768 * 2
    assert found["bandwidth"] == 372e9
    assert found["hidden_from_tokens"] == pytest.approx(12_269, abs=1)
    assert not found["attention_counted"]
    assert [rank["start_expert_id"] for rank in found["ranks"]] == [0, 32, 64, 96]
    assert found["ranks"][1]["own_bytes"] == found["bytes_of_all_experts"] // 4
    assert found["ranks"][1]["slot_bytes"] == 2 * found["remote_bytes_per_layer"]
    faster = planned(*SHAPES, "--bandwidth", 186, "--tflops", 245, "--memory-bandwidth", 2.4)
    assert faster["hidden_from_tokens"] == found["hidden_from_tokens"]
    measured = planned(*SHAPES, "--measured", "16384:2.5")
    assert measured["seconds_to_compute"]["16384"] == pytest.approx(2.5e-3)


def test_ranges_that_overlap() -> None:
    found = planned("--experts", 72, *SHAPES[2:], "--dwdp-size", 3, "--num-experts-per-worker", 26)
    assert found["num_prefetch_experts"] == 23
    assert [(rank["start_expert_id"], rank["end_expert_id"]) for rank in found["ranks"]] == [
        (0, 26),
        (23, 49),
        (46, 72),
    ]
    assert found["ranks"][0]["fetches"] == [
        {"owner": 1, "start": 26, "stop": 49},
        {"owner": 2, "start": 49, "stop": 72},
    ]


def test_a_table_that_fits_a_terminal_and_a_chart(tmp_path: Path) -> None:
    chart = tmp_path / "plan.svg"
    ended = run("dwdp", "plan", *SHAPES, "--chart", chart)
    assert ended.returncode == 0, ended.stderr
    assert max(map(len, ended.stdout.splitlines())) <= 80
    for said in ("32–63", "57.98 GB", "16.31 GB", "2.44 ms", "12,269 tokens", "16,384 tokens", "not hidden"):
        assert said in ended.stdout
    assert "attention not counted" in ended.stdout
    assert "hidden from 12,269 tokens on" in chart.read_text()
    assert "without attention" in chart.read_text()


def test_a_folder_with_a_configuration_alone(folder: Path) -> None:
    found = planned(folder, "--dwdp-size", 2)
    assert found["bytes_of_all_experts"] == 2 * 8 * 3 * 256 * 512 * 2
    assert found["origin"] == "config.json of qwen3_moe, bfloat16"
    wider = planned(folder, "--dwdp-size", 2, "--dtype", "float32")
    assert wider["bytes_of_all_experts"] == 2 * found["bytes_of_all_experts"]
    assert found["attention_counted"]
    assert "scores of attention not counted" in CliRunner().invoke(app, ["dwdp", "plan", str(folder)]).output
    assert "not counted" not in CliRunner().invoke(app, ["dwdp", "plan", str(folder), "--prompt", "4096"]).output


def test_a_folder_with_files_says_what_is_stored(folder: Path) -> None:
    names = {"gate_proj": (512, 256), "up_proj": (512, 256), "down_proj": (256, 512)}
    tensors = {
        f"model.layers.{layer}.mlp.experts.{expert}.{name}.weight": np.zeros(shape, np.float32)
        for layer in range(2)
        for expert in range(8)
        for name, shape in names.items()
    }
    save_file(tensors, folder / "model.safetensors")
    found = planned(folder, "--dwdp-size", 4)
    assert found["bytes_of_all_experts"] == 2 * 8 * 3 * 256 * 512 * 4
    assert found["origin"] == "the safetensors files of some-model"
    assert found["hidden_from_tokens"] > 0
    (folder / "model.safetensors").write_bytes(b"\0" * 20)
    assert "model.safetensors" in refused(folder)


def test_a_name_that_would_steer_a_terminal_is_text(folder: Path) -> None:
    save_file({"model.layers.0.mlp.experts.w": np.zeros((8, 9 << 17), np.float32)}, folder / "model.safetensors")
    renamed = folder.rename(folder.with_name("[red]\x1b[2J"))
    shown = run("dwdp", "plan", renamed, "--dwdp-size", 2).stdout
    assert "\x1b" not in shown
    assert "[red]" in shown


def test_what_does_not_go_together_is_refused_with_the_way_out(folder: Path, tmp_path: Path) -> None:
    ended = run("dwdp", "plan", "--experts", 8)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("mx: name a model folder, or give --hidden")
    assert "num_experts_per_worker=32 and num_prefetch_experts=32 would do" in refused(
        *SHAPES, "--num-experts-per-worker", 30
    )
    assert "--num-experts-per-worker" in refused(*SHAPES, "--num-prefetch-experts", 30)
    assert "leave --experts" in refused(folder, "--experts", 8)
    assert "8192:1.28" in refused(*SHAPES, "--measured", "soon")
    for size in (1, 0, -1):
        assert "at least 2 ranks" in refused(*SHAPES, "--dwdp-size", size)
    for bandwidth in (0, -1, "nan", "inf"):
        assert "more than 0" in refused(*SHAPES, "--bandwidth", bandwidth)
    assert "more than 0" in refused(*SHAPES, "--tflops", "nan")
    assert "more than 0" in refused(*SHAPES, "--measured", "8192:nan")
    assert "a prompt of -1 tokens" in refused(*SHAPES, "--prompt", -1)
    assert "bfloat16" in refused(*SHAPES, "--dtype", "float3")
    assert "config.json" in refused(tmp_path / "nowhere")
    assert "cannot be written" in refused(*SHAPES, "--chart", tmp_path / "nowhere" / "plan.svg")
