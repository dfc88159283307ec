#!/usr/bin/env bash
# Fails unless `make setup` is through at once, and silent, once it has been run.
set -euo pipefail
cd "$(dirname "$0")/.."
said=$(make setup)
if [ -n "$said" ]; then
    echo "check_setup: the second \`make setup\` was not silent: $said" >&2
    exit 1
fi
test -x .venv/bin/mx
