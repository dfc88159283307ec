"""The example manifests are what Kubernetes accepts, and name only what exists."""

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from modelexpress.settings import variables

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
MANIFESTS = sorted(FOLDER.glob("*.yaml"))


def objects(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def pods(path: Path) -> list[dict[str, Any]]:
    return [each["spec"]["template"]["spec"] for each in objects(path) if each["kind"] == "Deployment"]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_a_manifest_has_the_shape_that_kubernetes_expects(path: Path) -> None:
    for each in objects(path):
        kubernetes_validate.validate(each, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_variables_and_volumes_exist(path: Path) -> None:
    known = {name for name, _, _ in variables()} | {"VLLM_CACHE_ROOT", "TRITON_CACHE_DIR"}
    for pod in pods(path):
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert {each["name"] for each in container.get("env", [])} <= known
            assert {each["name"] for each in container["volumeMounts"]} <= volumes


def test_replicas_find_the_registry() -> None:
    (service,) = [each for each in objects(FOLDER / "registry.yaml") if each["kind"] == "Service"]
    address = f"{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    for path in (FOLDER / "vllm-source.yaml", FOLDER / "vllm-target.yaml"):
        (container,) = pods(path)[0]["containers"]
        (url,) = [each["value"] for each in container["env"] if each["name"] == "MODEL_EXPRESS_URL"]
        assert url == address
