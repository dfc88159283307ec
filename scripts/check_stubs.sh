#!/usr/bin/env bash
# Fails unless the protobuf stubs in src/modelexpress/wire are those that proto/ gives.
set -euo pipefail
cd "$(dirname "$0")/.."
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
scripts/generate_stubs.sh "$fresh"
for stub in "$fresh"/modelexpress/wire/*; do
    diff -u "src/modelexpress/wire/$(basename "$stub")" "$stub" || {
        echo "check_stubs: src/modelexpress/wire/$(basename "$stub") does not match proto/: run \`make proto\`" >&2
        exit 1
    }
done
