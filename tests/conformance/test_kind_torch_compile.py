"""torch.compile's cache does what every kind of cache must do."""

import tempfile
from collections.abc import Mapping

import pytest

from modelexpress.artifacts.kinds.torch_compile import TorchCompile
from modelexpress.errors import IdentityError
from modelexpress.identity import SourceIdentity
from tests.conformance.kind import BASE, KindConformance


class TestTorchCompile(KindConformance):
    kind = TorchCompile()
    needs_model = True
    entries = ("ab/cabxyz.py", "cd/c1.so", "triton/0/KEY/kernel.cubin", "fxgraph/ab/fabc/hash", "aotautograph/a1/hash")

    def roots(self) -> Mapping[str, Mapping[str, str]]:
        return {
            "/x/inductor": {"TORCHINDUCTOR_CACHE_DIR": "/x/inductor", "VLLM_CACHE_ROOT": "/x/vllm"},
            "/x/vllm/torch_compile_cache": {"VLLM_CACHE_ROOT": "/x/vllm"},
            f"{tempfile.gettempdir()}/torchinductor_somebody": {},
        }

    def test_an_identity_needs_model_and_torch(self) -> None:
        for lacking in ("model_name", "torch_version"):
            with pytest.raises(IdentityError, match=lacking):
                self.kind.identity(SourceIdentity(**vars(BASE) | {lacking: ""}))

    def test_only_equal_digests_share_a_cache(self) -> None:
        one, other = (self.kind.identity(BASE, compile_config_digest=digest) for digest in ("a", "b"))
        assert one.source_id != other.source_id
