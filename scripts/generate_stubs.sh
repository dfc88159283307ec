#!/usr/bin/env bash
# Writes the protobuf stubs of src/modelexpress/wire from proto/. Run it after a change to a .proto file.
# An argument names another folder to write below than src.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
out=${1:-src}
python -m grpc_tools.protoc --proto_path=proto --python_out="$out" --grpc_python_out="$out" \
    --mypy_out=quiet:"$out" --mypy_grpc_out=quiet:"$out" proto/modelexpress/wire/*.proto
