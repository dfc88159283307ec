#!/usr/bin/env bash
# Writes the protobuf stubs of src/modelexpress/wire from proto/. Run it after a change to a .proto file.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
python -m grpc_tools.protoc --proto_path=proto --python_out=src --grpc_python_out=src \
    --mypy_out=quiet:src --mypy_grpc_out=quiet:src proto/modelexpress/wire/*.proto
