"""The Kubernetes examples of TensorRT-LLM: both sides name the same model and registry, and variables that exist."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from modelexpress.settings import variables

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
MESSAGES = (
    "lists no TensorRT-LLM checkpoint",
    "no registry is available at",
    "a bearer token is needed",
    "did not answer within",
    "trying on:",
    "another load writes into",
    "is not on the PATH",
    "it changed while it was read",
    "has not taken it yet: it is tried on",
    "Config not found",
    "Weights not found",
    "is none that torch has",
)
"""Words of the tables: what the log says is what people look for there."""


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


def test_the_source_reads_from_the_claim_that_there_is_a_manifest_for() -> None:
    claim, copying = yaml.safe_load_all((FOLDER / "trtllm-checkpoints.yaml").read_text())
    (source,) = yaml.safe_load_all((FOLDER / "trtllm-source.yaml").read_text())
    for pod in (copying["spec"], source["spec"]["template"]["spec"]):
        claims = [v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v]
        assert claims == [claim["metadata"]["name"]]


def test_the_source_is_ready_when_the_registry_lists_it() -> None:
    source = container("trtllm-source.yaml", "containers")
    assert source["command"][-2:] == ["--ready-file", source["readinessProbe"]["exec"]["command"][-1]]


def test_every_image_has_a_recipe() -> None:
    lines = [line for path in FOLDER.glob("*.yaml") for line in path.read_text().splitlines()]
    images = {line.split()[-1] for line in lines if "image:" in line and "vllm" not in line}
    recipe = (FOLDER / "Dockerfile").read_text()
    assert images == {image for image in images if f"--tag {image} -" in recipe}


@pytest.mark.parametrize("said", MESSAGES)
def test_the_messages_in_the_readme_are_those_of_the_package(said: str) -> None:
    assert said in (FOLDER / "README.md").read_text()
    texts = (path.read_text() for path in (ROOT / "src" / "modelexpress").rglob("*.py"))
    assert any(said in text for text in texts)


def test_the_readme_names_every_manifest() -> None:
    readme = (FOLDER / "README.md").read_text()
    for path in FOLDER.glob("*.yaml"):
        assert f"`{path.name}`" in readme, path.name
