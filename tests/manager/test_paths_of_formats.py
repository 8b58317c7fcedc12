"""Any state by every path, in every format and on every kind of store: bit for bit, or refused before it is written."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.errors import UnsupportedStateError
from ckpt_lib.formats.limits import extent
from ckpt_lib.state.sameness import first_difference
from ckpt_lib.store.memory import ALL, MemoryStore
from ckpt_lib.store.registry import registered
from tests.folders import memory_folder
from tests.formats.archives import PROPERTY
from tests.formats.every_format import EVERY_FORMAT, options_of
from tests.manager.states import states
from tests.manager.test_paths import SAVES, Known, Run, known, overwrite, parts_of, tensors_of
from tests.torture.places import LOCAL, MISSING, discard, lacks_conditions

_numbers = itertools.count()


class _Run(Run):
    """A run that saves in one of the formats, on one of the kinds of store."""

    def __init__(self, url: str, stored_format: str, kind: str, extra: dict[str, Any]) -> None:
        super().__init__(Path(), extra)
        self._options = {**options_of(stored_format), "single_writer": lacks_conditions(kind)}
        self._url = url

    def manager(self, **options: Any) -> CheckpointManager:
        return self.named("run", **options)

    def named(self, name: str, **options: Any) -> CheckpointManager:
        return CheckpointManager(CheckpointConfig(checkpoint_dir=self._url, **{**self._options, **options}), name)


@contextmanager
def store_of(kind: str) -> Iterator[str]:
    """The URL of a store of a kind, which is gone afterwards."""
    if kind == LOCAL:
        with tempfile.TemporaryDirectory(dir=memory_folder()) as folder:
            yield folder
        return
    capabilities = replace(ALL, **dict.fromkeys(MISSING[kind], False))
    with registered("memory", lambda url: MemoryStore(url, capabilities)):
        store = MemoryStore(f"paths{next(_numbers)}")
        try:
            yield store.url
        finally:
            discard(store)


class _Kept(NamedTuple):
    """What every format keeps of a payload: like the format ``torch``, but for which tensors are one object, and for
    memory that lies beside a tensor in its storage.
    """

    known: Known
    overlaps: list[int | None]

    def is_in(self, payload: dict[str, Any]) -> bool:
        found = known(payload)
        return self.known._replace(sharing=found.sharing).is_in(payload) and overlaps(payload) == self.overlaps


def overlaps(payload: dict[str, Any]) -> list[int | None]:
    """For each two tensors how many bytes one begins behind the other, if their memory overlaps."""
    tensors = list(tensors_of(parts_of(payload)))
    return [_distance(one, other) for one, other in itertools.combinations(tensors, 2)]


def _distance(one: torch.Tensor, other: torch.Tensor) -> int | None:
    if one is not other and any(tensor.is_conj() or tensor.is_neg() for tensor in (one, other)):
        return None  # these get memory of their own
    starts = one.data_ptr(), other.data_ptr()
    sizes = [extent(tensor.shape, tensor.stride()) * tensor.itemsize for tensor in (one, other)]
    is_apart = not all(sizes) or starts[0] + sizes[0] <= starts[1] or starts[1] + sizes[1] <= starts[0]
    return None if is_apart else starts[1] - starts[0]


def payloads(run: _Run, checkpoint_id: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """A checkpoint by every way out that a store of any kind has."""
    manager = run.manager()
    yield "loaded", manager.load_checkpoint(checkpoint_id)
    names = ["optimizer_state_dict", "model_state_dict", *(f"extra_state.{name}" for name in run.extra)]
    yield "by keys", manager.load_checkpoint(checkpoint_id, keys=names)
    home = manager._locations.home
    for file in home.get(checkpoint_id).files:
        home.store.delete(home.key(file.name))
    manager.restore_checkpoint(checkpoint_id)
    yield "restored", manager.load_checkpoint(checkpoint_id)
    with tempfile.TemporaryDirectory(dir=memory_folder()) as folder:
        exported = manager.export_checkpoint(checkpoint_id, folder)
        other = run.named("other")
        yield "imported", other.load_checkpoint(other.import_checkpoint(exported))


@pytest.mark.usefixtures("npz_format")
@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@settings(PROPERTY, max_examples=max(1, settings().max_examples // 5))
@given(
    stored_format=st.sampled_from(EVERY_FORMAT),
    kind=st.sampled_from([LOCAL, *MISSING]),
    way_in=st.sampled_from(list(SAVES)),
    extra=states(),
)
def test_every_path_of_every_format(stored_format: str, kind: str, way_in: str, extra: dict[str, Any]) -> None:
    """Saved, backed up, restored, exported, imported, thinned: always the bits that were saved; a check says before
    whether a save will be refused.
    """
    where = stored_format, kind, way_in
    with store_of(kind) as url:
        run = _Run(url, stored_format, kind, extra)
        try:
            run.manager().check(model=run.model, optimizer=run.optimizer, extra_state=extra)
        except UnsupportedStateError:
            with pytest.raises(UnsupportedStateError):
                SAVES[way_in](run)
            assert run.manager().list_checkpoints() == []
            return
        expected, weights = _Kept(known(run.payload()), overlaps(run.payload())), None
        checkpoint_id = str(SAVES[way_in](run))
        for way_out, found in payloads(run, checkpoint_id):
            assert expected.is_in(found), (where, way_out)
            weights = run.manager().load_checkpoint(checkpoint_id, keys=["model_state_dict"])
            overwrite(found)
        run.manager().thin_checkpoint(checkpoint_id)
        thinned = run.manager().load_checkpoint(checkpoint_id)
        assert first_difference(thinned["model_state_dict"], (weights or {})["model_state_dict"]) is None, where
        run.manager().unthin_checkpoint(checkpoint_id)
        assert expected.is_in(run.manager().load_checkpoint(checkpoint_id)), where
