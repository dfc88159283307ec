"""The Kubernetes examples of TensorRT-LLM: both sides name the same model and registry, and variables that exist."""

from pathlib import Path
from typing import Any

import yaml

from modelexpress.settings import variables

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"


def container(file: str, kind: str) -> dict[str, Any]:
    (each,) = yaml.safe_load_all((FOLDER / file).read_text())
    (found,) = each["spec"]["template"]["spec"][kind]
    assert isinstance(found, dict)
    return found


def environment(found: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each.get("value", "") for each in found["env"]}


def test_source_and_target_go_together() -> None:
    source = environment(container("trtllm-source.yaml", "containers"))
    receiver = container("trtllm-target.yaml", "initContainers")
    target = environment(receiver)
    assert source["MODEL_NAME"] == target["MODEL_NAME"]
    assert source["MODEL_EXPRESS_URL"] == target["MODEL_EXPRESS_URL"] == "modelexpress-registry:8001"
    assert target.keys() <= {name for name, _, _ in variables()}
    server = container("trtllm-target.yaml", "containers")
    assert f"{target['OUTPUT_DIR']}/engine" in server["command"]
    assert {each["name"] for each in receiver["volumeMounts"]} == {"token", "engines"}


def test_the_readme_names_every_manifest() -> None:
    readme = (FOLDER / "README.md").read_text()
    for path in FOLDER.glob("*.yaml"):
        assert f"`{path.name}`" in readme, path.name
