"""This package: a source that publishes its model, and a target that loads it."""

import sys
import time

import modelexpress as mx
from benchmarks.beside.children import say
from benchmarks.beside.tensors import (
    REPETITIONS,
    allocate,
    arrived,
    chosen_shapes,
    common_options,
    fill,
    finish,
    seconds,
    warm_up,
)
from modelexpress.weights.report import COPY

_IDENTITY = mx.SourceIdentity(model_name="side-by-side")
_SETTINGS = mx.Settings(worker_grpc_port=0)


def main() -> None:
    """Be the source until standard input ends, or the target."""
    parser = common_options()
    parser.add_argument("--registry", required=True)
    parser.add_argument("--source", action="store_true")
    given = parser.parse_args()
    tensors = allocate(chosen_shapes(given), given.device)
    if given.source:
        fill(tensors)
        finish(given.device)
        started = time.perf_counter()
        with mx.publish(tensors, _IDENTITY, registry=given.registry, settings=_SETTINGS) as publication:
            say(publish=time.perf_counter() - started, ready=publication.wait_ready(60))
            sys.stdin.read()
        return
    warm_up(given.device)
    found, reports = [], []

    def load() -> None:
        reports.append(mx.load(tensors, _IDENTITY, registry=given.registry, settings=_SETTINGS))

    for _ in range(REPETITIONS + 1):
        for tensor in tensors.values():
            tensor.zero_()
        found.append(seconds(load, given.device))
    copies = [stage.seconds for report in reports for stage in report.stages if stage.name == COPY]
    say(seconds=found, copies=copies, right=arrived(tensors), transport=reports[0].transport)


if __name__ == "__main__":
    main()
