"""Edits and quarantine: no edit gets lost, and each is of what was read."""

from __future__ import annotations

import pytest

from ckpt_lib.core.manifest import Manifest
from ckpt_lib.errors import ConfigError
from ckpt_lib.experiment import deletion, edits
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.store.memory import MemoryStore
from tests.experiment.small import read, save


def test_edits_at_once_are_all_applied(store: MemoryStore) -> None:
    """Each is tried again on what another wrote meanwhile: no edit gets lost."""
    made = save(Experiment(store, "e", "e"))
    others = iter(range(8))

    def tag(name: str) -> Manifest:
        return edits.edit(Experiment(store, "e", "e"), made.checkpoint_id, lambda item: interrupted(item, name))

    def interrupted(item: Manifest, name: str) -> Manifest:
        other = next(others, None)
        if other is not None:
            tag(f"t{other}")
        return item.changed(tags=(*item.tags, name))

    tag("first")
    assert set(Experiment(store, "e", "e").get(made.checkpoint_id).tags) == {"first", *(f"t{n}" for n in range(8))}


def test_an_edit_that_fails_changes_nothing(experiment: Experiment) -> None:
    """The old manifest stays, byte for byte; unknown fields of newer versions survive one that works."""
    made = save(experiment)
    before = read(experiment, f"{made.checkpoint_id}.json")
    with pytest.raises(ConfigError):
        edits.edit(experiment, made.checkpoint_id, lambda item: item.changed(description="\ud800"))
    assert read(experiment, f"{made.checkpoint_id}.json") == before
    edits.edit(experiment, made.checkpoint_id, lambda item: item.model_copy(update={"from_the_future": [1]}))
    edits.edit(experiment, made.checkpoint_id, lambda item: item.changed(pinned=True))
    assert experiment.get(made.checkpoint_id).model_extra == {"from_the_future": [1]}


def test_a_quarantine_cites_what_was_read(experiment: Experiment) -> None:
    """A manifest that changed since is left alone; readers of the newest valid one pass over what is set aside."""
    first, second = save(experiment), save(experiment, 2)
    found = experiment.read(second.checkpoint_id)
    edits.edit(experiment, second.checkpoint_id, lambda item: item.changed(tags=("t",)))
    assert edits.quarantine(experiment, found, {"files": ["x"]}) is None
    deletion.delete_all(experiment, [first.checkpoint_id], relied_on=[second.checkpoint_id])
    aside = edits.quarantine(experiment, experiment.read(second.checkpoint_id), {"files": ["x"]})
    assert aside
    assert aside.quarantined
    assert aside.quarantined.report == {"files": ["x"]}
    assert [item.uid for item in experiment.index.view().valid] == [first.uid], "the last valid one came back"
    assert edits.release(experiment, experiment.read(second.checkpoint_id))
    assert len(experiment.index.view().valid) == 2
