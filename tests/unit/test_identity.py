"""Source ids agree with the protocol's vectors, and identities refuse what they cannot carry."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelexpress.errors import IdentityError
from modelexpress.identity import BackendFramework, SourceIdentity, SourceType, package_version
from modelexpress.wire.p2p import identity_from_message, identity_to_message
from tests.support.identities import identities

ROOT = Path(__file__).parents[2]
VECTORS = json.loads((ROOT / "tests" / "data" / "source_id_vectors.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: str(vector["mx_source_id"]))
def test_source_ids_agree_with_the_protocol(vector: dict[str, Any]) -> None:
    assert SourceIdentity(**vector["identity"]).source_id == vector["mx_source_id"]


@given(identity=identities())
def test_a_source_id_is_sixteen_hex_digits_and_ignores_case(identity: SourceIdentity) -> None:
    assert re.fullmatch("[0-9a-f]{16}", identity.source_id)
    quiet = dataclasses.replace(identity, dtype=identity.dtype.lower())
    assert quiet.source_id == identity.source_id


@given(identity=identities())
def test_an_identity_survives_the_wire(identity: SourceIdentity) -> None:
    returned = identity_from_message(identity_to_message(identity))
    assert returned == identity
    assert returned.source_id == identity.source_id


@given(parameters=st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=6), data=st.data())
def test_the_order_of_parameters_does_not_matter(parameters: dict[str, str], data: st.DataObject) -> None:
    shuffled = dict(data.draw(st.permutations(list(parameters.items()))))
    one, other = (SourceIdentity(extra_parameters=given) for given in (parameters, shuffled))
    assert one.source_id == other.source_id


@pytest.mark.parametrize("name", ["vllm", "VLLM", "BACKEND_FRAMEWORK_VLLM", 1, BackendFramework.VLLM])
def test_enums_take_names_and_numbers(name: Any) -> None:
    assert SourceIdentity(backend_framework=name).backend_framework is BackendFramework.VLLM


def test_every_field_decides() -> None:
    others: dict[str, Any] = {
        "mx_source_type": SourceType.LORA,
        "backend_framework": BackendFramework.SGLANG,
        "extra_parameters": {"a": "b"},
    }
    plain = SourceIdentity()
    for field in dataclasses.fields(SourceIdentity):
        other: Any = others.get(field.name, 7 if field.type is int else "x")
        changed: dict[str, Any] = {field.name: other}
        assert SourceIdentity(**changed).source_id != plain.source_id, field.name


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mx_source_type": "paper"}, "weights"),
        ({"mx_source_type": 99}, "SourceType"),
        ({"backend_framework": None}, "BackendFramework"),
        ({"model_name": None}, "model_name must be a string"),
        ({"tensor_parallel_size": -1}, "tensor_parallel_size"),
        ({"tensor_parallel_size": 2**32}, "4294967295"),
        ({"tensor_parallel_size": True}, "whole number"),
        ({"extra_parameters": {"a": 1}}, "strings to strings"),
    ],
)
def test_what_cannot_be_carried_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(IdentityError, match=message):
        SourceIdentity(**fields)


def test_a_lone_surrogate_cannot_travel() -> None:
    with pytest.raises(IdentityError, match="Unicode"):
        identity_to_message(SourceIdentity(model_name="\ud800"))


def test_the_version_of_a_package_that_is_not_installed(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "src/modelexpress", tmp_path / "modelexpress")
    code = "import sys; sys.path.append(sys.argv[1]); from modelexpress.identity import *; print(package_version())"
    command = [sys.executable, "-I", "-S", "-c", code, str(tmp_path)]
    assert subprocess.run(command, capture_output=True, check=True).stdout.decode().strip() == "source"
    assert package_version() == metadata.version("modelexpress")
