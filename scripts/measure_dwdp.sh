#!/usr/bin/env bash
# Tests and measures experts shared between GPUs, on two of them or more; each part in processes of its own.
#   scripts/measure_dwdp.sh OUT [PART ...]     parts: tests bench; without any, both
# BENCH are options of the benchmark: "--parts limit,prefetch", say. THEIRS is the folder `srt` of an installed sglang:
# without it that comparison is left out. DEVICE=cpu runs the same on the host, with tiny shapes.
# Writes OUT/tests.log, OUT/gpu_dwdp.json and OUT/gpu_dwdp.svg. A part that fails does not stop the others.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$1
shift
parts=${*:-tests bench}
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
export PYTHONPATH="${PYTHONPATH:+$PYTHONPATH:}src:." PYTHONUNBUFFERED=1 PYTHONWARNINGS=ignore DWDP_DEVICE="$device"
export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-lo} # all ranks are on this host
mkdir -p "$out"

run() {
    local name=$1
    shift
    local begun=$SECONDS
    timeout "${LIMIT:-420}" "$@" 2>&1 | tee "$out/$name.log" | tail -n "${LINES_SHOWN:-80}"
    echo "== $name: status ${PIPESTATUS[0]}, $((SECONDS - begun)) s"
}

for part in $parts; do
    case $part in
    tests) run tests "$python" -m pytest -c /dev/null --rootdir=. --import-mode=importlib -q \
        --durations=8 tests/gpu/test_dwdp_device.py ${TESTS:-} ;;
    bench) run bench "$python" -m benchmarks.gpu_dwdp --device "$device" --theirs "${THEIRS:-}" \
        --out "$out/gpu_dwdp.json" --chart "$out/gpu_dwdp.svg" ${BENCH:-} ;;
    esac
done
