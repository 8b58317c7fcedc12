"""Going on while checkpoints are stranded: the newest and good copy is found, wherever it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckpt_lib.errors import CheckpointError, NoValidCheckpointError, StoreUnavailableError
from tests.helpers import MakeManager, flip_bit, ids, payload_path, save
from tests.saving.failing_stores import AWAY, EIO, failing, home_payload, interrupted, strand

pytestmark = pytest.mark.usefixtures("_no_waiting")


def test_resuming_takes_the_good_copy_of_a_damaged_one(make_safe: MakeManager, fallback_dir: Path) -> None:
    """It is in both places, and the copy at home is damaged."""
    manager = make_safe()
    (stranded,) = strand(manager, 1)
    interrupted(manager, stranded)
    flip_bit(home_payload(manager, stranded), 300)
    resumed = make_safe().resume()
    assert resumed is not None
    assert (resumed["checkpoint_id"], resumed["passed_over"]) == (stranded, [])


def test_resuming_finds_what_is_stranded(make_safe: MakeManager) -> None:
    """A new process on the same machine: healthy again, the store gets it first."""
    manager = make_safe()
    save(manager, 1)
    (stranded,) = strand(manager, 2)
    resumed = make_safe()
    payload = resumed.resume()
    assert payload is not None
    assert payload["checkpoint_id"] == stranded
    assert resumed.list_stranded() == []
    assert ids(resumed)[-1] == stranded


@pytest.mark.parametrize("methods", [(), ("open_write", "put", "delete")], ids=["away", "read-only"])
def test_resuming_while_the_store_fails(make_safe: MakeManager, methods: tuple[str, ...]) -> None:
    """Where it cannot be read, what is stranded is what there is; where it can, the newest of both."""
    manager = make_safe()
    save(manager, 1)
    (stranded,) = strand(manager, 2)
    resumed = make_safe()
    with failing(resumed, AWAY, *methods):
        payload = resumed.resume()
        assert payload is not None
        assert (payload["checkpoint_id"], payload["epoch"]) == (stranded, 2)
        assert resumed.load_checkpoint(stranded)["epoch"] == 2
        assert resumed.validate_checkpoint(stranded)
        later = save(resumed, 3)
    assert save(resumed, 4) == ids(resumed)[-1]
    assert [item.checkpoint_id for item in resumed.list_checkpoints()][1:3] == [stranded, later]
    assert resumed.get_checkpoint(later).parent_id == stranded


def test_resuming_without_anything_stranded_is_as_ever(make_safe: MakeManager) -> None:
    """A store that does not answer is not an empty one."""
    manager = make_safe()
    assert manager.resume() is None
    save(manager, 1)
    with failing(manager, AWAY), pytest.raises(StoreUnavailableError):
        manager.resume()
    flip_bit(payload_path(manager, ids(manager)[0]), 300)
    with pytest.raises(NoValidCheckpointError):
        manager.resume()


def test_a_stranded_one_that_is_gone_on_from_is_followed_home(make_safe: MakeManager) -> None:
    """It is protected at home from then on, and no copy stays behind."""
    manager = make_safe(max_checkpoints=1)
    (stranded,) = strand(manager, 1, loss=5.0)
    with failing(manager, EIO, "open_write", "put"):
        assert manager.resume() is not None
    newer = [save(manager, epoch, loss=1.0 / epoch) for epoch in (2, 3)]
    assert manager._locations.fallback is not None
    view = manager._locations.fallback.index.view()
    assert (view.manifests, view.deleted) == ((), ())
    assert ids(manager) == [stranded, newer[-1]]


def test_an_id_that_is_nowhere_is_named_as_ever(make_safe: MakeManager) -> None:
    """The fallback folder hides no mistake."""
    manager = make_safe()
    strand(manager, 1)
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        manager.load_checkpoint("checkpoint_epoch_0009_step_000000_20240101_000000")
