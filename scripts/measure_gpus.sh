#!/usr/bin/env bash
# Tests and measures on a machine with GPUs: what can be done with as many as there are.
#   scripts/measure_gpus.sh OUT [PART ...]     parts: digest tests load nixl chain beside serving; without any, all
# Each part writes OUT/PART.json, or OUT/PART.log for the tests, and a part that fails does not stop the others.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$1
shift
parts=${*:-digest tests load nixl chain beside serving}
python=${PYTHON:-python3}
export PYTHONPATH="${PYTHONPATH:+$PYTHONPATH:}src:." PYTHONUNBUFFERED=1 PYTHONWARNINGS=ignore
gpus=$($python -c 'import torch; print(torch.cuda.device_count())')
mkdir -p "$out"

run() {
    local name=$1
    shift
    local begun=$SECONDS
    "$@" 2>&1 | tee "$out/$name.log" | tail -n "${LINES_SHOWN:-60}"
    echo "== $name: status ${PIPESTATUS[0]}, $((SECONDS - begun)) s"
}

for part in $parts; do
    case $part in
    digest) run digest $python -m benchmarks.digest_gpu --out "$out/digest_gpu.json" ;;
    tests) run tests $python -m pytest -c /dev/null --rootdir=. --import-mode=importlib -q tests/gpu ;;
    load) for set in dense experts; do
        run "load_$set" $python -m benchmarks.gpu_load --set $set --out "$out/gpu_load_$set.json"
    done ;;
    nixl) run nixl $python -m benchmarks.gpu_nixl --out "$out/gpu_nixl.json" ;;
    chain) [ "$gpus" -ge 2 ] && run chain $python -m benchmarks.gpu_chain --out "$out/gpu_chain.json" ;;
    beside) run beside $python -m benchmarks.gpu_side_by_side --out "$out/gpu_side_by_side.json" ${BESIDE:-} ;;
    serving) run serving $python -m benchmarks.gpu_serving --out "$out/gpu_serving.json" ;;
    esac
done
