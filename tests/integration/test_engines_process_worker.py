"""The workers of an engine's process: one for each registry that the process is told of."""

import pytest

import modelexpress as mx
from modelexpress.engines import process_worker
from tests.support.materials import make_material

SETTINGS = mx.Settings(worker_grpc_port=0)


def test_what_is_offered_at_another_registry_is_offered_there(registry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_worker, "_workers", {})
    elsewhere, here = (SETTINGS.model_copy(update={"registry": address}) for address in ("127.0.0.1:1", registry))
    first, second = (process_worker.process_worker(0, settings) for settings in (elsewhere, here))
    assert first is not None
    assert second is not None
    with first, second:
        assert process_worker.process_worker(0, here) is second
        assert second.publish(make_material()).wait_ready(20)
