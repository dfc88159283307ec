# `make` lists the targets. Each one that needs the virtual environment sets it up first; a second time that takes
# no time. ARGS goes to the command that a target runs: make test ARGS="-k digest".

# The first of these that the package supports and that can make virtual environments; override with PYTHON=...
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null \
	&& echo $$python && break; done)
NO_PYTHON = no Python 3.11, 3.12 or 3.13 with the modules venv and ensurepip was found: install one \
	(Debian and Ubuntu: apt install python3-venv), or say where it is: make PYTHON=/path/to/python3

BIN := .venv/bin
MAKEFLAGS += --no-print-directory

.PHONY: help setup engines demo test check format proto docs bench clean

help:
	@echo "make setup    a virtual environment in .venv with the package and its tools"
	@echo "make engines  vLLM and SGLang, each in a virtual environment of its own, for tests (some 5 GB)"
	@echo "make demo     a registry and three replicas of a model on this machine"
	@echo "make test     every test; make test ARGS='-k digest' for some"
	@echo "make check    format, lint, types, import layers, dead code, generated files"
	@echo "make format   rewrite the code in the project's format"
	@echo "make proto    the protobuf stubs, after a change in proto/"
	@echo "make docs     the generated pages and tables of the documentation"
	@echo "make bench    every benchmark, into benchmarks/results/ (some ten minutes)"
	@echo "make clean    remove what the other targets made, .venv included"

setup:
	@$(or $(PYTHON),$(error $(NO_PYTHON))) scripts/setup.py

engines: setup
	@$(BIN)/python -m scripts.engines $(ARGS)

demo: setup
	@$(BIN)/mx demo $(ARGS)

test: setup
	@$(BIN)/pytest $(ARGS)

check: setup
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/vulture
	$(BIN)/python scripts/check_tree.py
	$(BIN)/python -m scripts.write_docs --check
	scripts/check_stubs.sh

format: setup
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

proto: setup
	scripts/generate_stubs.sh

docs: setup
	$(BIN)/python -m scripts.write_docs

bench: setup
	$(BIN)/python benchmarks/digest.py
	$(BIN)/python benchmarks/registry.py
	$(BIN)/python -m benchmarks.transport
	$(BIN)/python -m benchmarks.nixl
	$(BIN)/python -m benchmarks.load
	$(BIN)/python -m benchmarks.artifacts
	$(BIN)/python -m benchmarks.fan_out
	$(BIN)/python -m scripts.write_docs

clean:
	rm -rf .venv .engines build .demo .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src -name '*.so' -delete
	find src -name '*.egg-info' -prune -exec rm -rf {} +
	find src tests benchmarks scripts -name __pycache__ -prune -exec rm -rf {} +
