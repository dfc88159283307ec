"""What every kind of cache must do. A kind's test file subclasses this and says how the cache looks.

The files are real: a cache as its library would leave it, sealed, and installed under another root.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import pytest

from modelexpress.artifacts.install import install, missing
from modelexpress.artifacts.kind import STATE_FOLDER, Kind
from modelexpress.artifacts.kinds import KINDS
from modelexpress.artifacts.snapshot import take_snapshot
from modelexpress.errors import IdentityError
from modelexpress.identity import SourceIdentity, SourceType

BASE = SourceIdentity(
    mx_version="1.0.0",
    model_name="meta-llama/Llama-3.1-8B",
    tensor_parallel_size=2,
    dtype="bfloat16",
    torch_version="2.13.0",
    cuda_version="13.0",
    triton_version="3.6.0",
    gpu_arch="sm_90",
)
LITTER = ("lock", "locks/a.lock", "x/kernel.so.tmp", "tmp.pid_7_ab/kernel.cubin", "build.log", ".nfs0001", "a/.mx-part")
HOME = {"HOME": "/srv/somebody", "USER": "somebody"}


class KindConformance(ABC):
    """Runs against the kind that `kind` names."""

    kind: Kind
    entries: tuple[str, ...]
    """Files of one entry as the library writes them, those that refer to others last."""
    needs_model = False

    @abstractmethod
    def roots(self) -> Mapping[str, Mapping[str, str]]:
        """Return root by root which variables lead there, beside those of `HOME`."""

    def test_its_root_follows_the_variables(self) -> None:
        for root, environ in self.roots().items():
            assert self.kind.root({**HOME, **environ}) == Path(root)
            assert self.kind.root({**HOME, **environ, "EMPTY": ""}) == Path(root)

    def test_empty_variables_count_as_not_set(self) -> None:
        given = {variable for environ in self.roots().values() for variable in environ}
        assert self.kind.root(HOME | dict.fromkeys(given, "")) == self.kind.root(HOME)

    def test_it_is_listed_under_its_name_and_type(self) -> None:
        assert [type(kind) for kind in KINDS if kind.name == self.kind.name] == [type(self.kind)]
        assert self.kind.source_type is not SourceType.WEIGHTS

    def test_nothing_else_has_its_identity(self) -> None:
        assert len({kind.identity(BASE).source_id for kind in KINDS}) == len(KINDS)

    def test_what_an_engine_looks_up_belongs(self) -> None:
        for entry in self.entries:
            assert self.kind.belongs(PurePosixPath(entry)), entry

    def test_locks_logs_and_unfinished_files_do_not(self) -> None:
        for path in LITTER:
            assert not self.kind.belongs(PurePosixPath(path)), path
        for entry in self.entries:
            assert not self.kind.belongs(PurePosixPath(STATE_FOLDER, entry)), entry

    def test_files_that_refer_to_others_come_last(self) -> None:
        order = [self.kind.comes_last(PurePosixPath(entry)) for entry in self.entries]
        assert order == sorted(order)

    def test_its_identity_is_of_its_type_and_keeps_what_decides(self) -> None:
        identity = self.kind.identity(BASE, compile_config_digest="d1")
        assert identity.mx_source_type is self.kind.source_type
        assert (identity.gpu_arch, identity.triton_version) == (BASE.gpu_arch, BASE.triton_version)
        assert identity.source_id != self.kind.identity(SourceIdentity(**vars(BASE) | {"gpu_arch": "sm_100"})).source_id
        assert identity.source_id == self.kind.identity(identity, compile_config_digest="d1").source_id

    def test_an_identity_without_a_model_is_accepted_unless_the_kind_needs_one(self) -> None:
        nameless = SourceIdentity(**vars(BASE) | {"model_name": ""})
        if self.needs_model:
            with pytest.raises(IdentityError, match="model_name"):
                self.kind.identity(nameless)
        else:
            assert self.kind.identity(nameless).model_name == ""

    def test_its_files_travel_to_another_root(self, tmp_path: Path) -> None:
        source, target = tmp_path / "source", tmp_path / "target"
        for number, entry in enumerate((*self.entries, *LITTER)):
            (source / entry).parent.mkdir(parents=True, exist_ok=True)
            (source / entry).write_bytes(b"%d " % number * number)
        with take_snapshot(self.kind, source, 1 << 20) as snapshot:
            manifest = snapshot.manifest
            assert {file.path[1:] for file in manifest.files} == set(self.entries)
            wanted = missing(self.kind, manifest, target)
            done = install(self.kind, manifest, target, {file.index: snapshot.content(file.index) for file in wanted})
        assert {file.path[1:] for file in done.written} == set(self.entries)
        for entry in self.entries:
            assert (target / entry).read_bytes() == (source / entry).read_bytes()
        assert missing(self.kind, manifest, target) == ()

    def test_what_is_no_cache_of_this_kind_stays_as_it_came(self, tmp_path: Path) -> None:
        for entry in self.entries:
            for content in (b"", b"\xff\xfe", b"[]", b"[" * 100_000, b'{"child_paths": 3}'):
                assert self.kind.localised(PurePosixPath(entry), memoryview(content), tmp_path) is None
