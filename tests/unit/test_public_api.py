"""The public API: what it consists of, that it loads lazily, and that the tree of errors is the one in the code."""

import ast
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import modelexpress
from modelexpress import errors
from modelexpress.errors import ModelExpressError

HEAVY = {"torch", "grpc", "numpy", "pydantic", "google.protobuf", "typer", "rich", "safetensors"}
SOURCE = Path(str(modelexpress.__file__))
MOST_MODULES = 30


def modules_after(statement: str) -> set[str]:
    """Return the modules that a statement makes a fresh interpreter import."""
    script = f"import json, sys; before = set(sys.modules); {statement}; "
    script += "print(json.dumps(sorted(set(sys.modules) - before)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def names_imported_for_types() -> set[str]:
    """Return the names that the package imports for type checkers alone."""
    tree = ast.parse(SOURCE.read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    return {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}


def test_every_public_name_can_be_imported() -> None:
    for name in modelexpress.__all__:
        assert getattr(modelexpress, name).__name__.rpartition(".")[2] == name


def test_the_public_names_are_those_that_type_checkers_see() -> None:
    assert modelexpress.__all__ == sorted(modelexpress.__all__)
    assert set(modelexpress.__all__) == names_imported_for_types() == set(modelexpress._HOMES)
    assert dir(modelexpress) == modelexpress.__all__


def test_every_public_name_has_a_docstring() -> None:
    for name in modelexpress.__all__:
        assert inspect.getdoc(getattr(modelexpress, name)), name


def test_an_unknown_name_is_an_attribute_error_that_names_it() -> None:
    assert not hasattr(modelexpress, "no_such_name")


def test_importing_the_package_imports_nothing_heavy() -> None:
    imported = modules_after("import modelexpress")
    assert not imported & HEAVY
    assert len(imported) <= MOST_MODULES, sorted(imported)


def test_the_package_for_sharing_experts_is_reached_without_an_import_of_its_own_and_needs_no_torch() -> None:
    assert not modules_after("import modelexpress; modelexpress.dwdp.DwdpConfig") & HEAVY
    assert modules_after("import modelexpress; modelexpress.dwdp.enable") & {"torch"}


def test_using_an_identity_imports_nothing_heavy() -> None:
    assert not modules_after("import modelexpress; modelexpress.SourceIdentity().source_id") & HEAVY


def test_the_command_line_imports_neither_torch_nor_transformers() -> None:
    assert not modules_after("import modelexpress.cli.app") & {"torch", "transformers"}


def drawn_tree() -> dict[str, str]:
    """Return the parent of every error class, as drawn at the top of errors.py."""
    parents, above = {}, ["Exception"]
    for line in inspect.getdoc(errors).splitlines():  # type: ignore[union-attr]
        if match := re.fullmatch(r"((?:[│ ]   )*)(├── |└── )?(\w+)", line):
            depth = len(match[1]) // 4 + (1 if match[2] else 0)
            above[depth + 1 :] = [match[3]]
            parents[match[3]] = above[depth]
    return parents


def error_classes() -> dict[str, type[ModelExpressError]]:
    return {
        name: value
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, ModelExpressError)
    }


def test_the_drawn_tree_of_errors_is_the_real_one() -> None:
    assert drawn_tree() == {name: kind.__bases__[0].__name__ for name, kind in error_classes().items()}


def test_every_error_says_in_one_sentence_what_it_means() -> None:
    for name, kind in error_classes().items():
        first = (inspect.getdoc(kind) or "").split("\n\n")[0]
        assert first.endswith("."), name
        assert "\n" not in first, name
        assert ". " not in first, name
