"""Tags, descriptions and search: edited and found, filtered, sorted and limited."""

from __future__ import annotations

from typing import Any

import pytest

from ckpt_lib import CheckpointManager
from ckpt_lib.errors import UnknownMetricError
from tests.helpers import payload_path, save


def test_tags_and_description_are_editable_and_searchable(manager: CheckpointManager) -> None:
    """An edit changes the facts and never the payload, and search finds the new facts and not the old."""
    first, second = save(manager, 1, tags=["draft"], description="Before the fix"), save(manager, 2)
    payload = payload_path(manager, first).read_bytes()
    edited = manager.edit_checkpoint(first, add_tags=["prod", "prod"], remove_tags=["draft"], description="Größer: gut")
    assert (edited.tags, edited.description) == (("prod",), "Größer: gut")
    assert payload_path(manager, first).read_bytes() == payload

    def found(**query: Any) -> list[str]:
        return [item.checkpoint_id for item in manager.list_checkpoints(**query)]

    assert found(tags=["prod"]) == [first]
    assert found(tags=["draft"]) == []
    assert found(search="GRÖSSER") == [first]
    assert found(search="before") == []
    assert found(search="") == [first, second]
    manager.edit_checkpoint(second, description="no tags here")
    assert manager.get_checkpoint(second).tags == ()


def test_tags_are_found_however_their_accents_are_spelled(manager: CheckpointManager) -> None:
    """Composed and decomposed Unicode are one tag, when saved, searched and loaded."""
    saved = save(manager, 1, tags=["cafe\u0301"])
    for spelling in ("caf\u00e9", "cafe\u0301"):
        assert [item.checkpoint_id for item in manager.list_checkpoints(tags=[spelling])] == [saved]
        assert [item.checkpoint_id for item in manager.list_checkpoints(search=spelling)] == [saved]
        assert manager.load_checkpoint(spelling)["checkpoint_id"] == saved


def test_lists_can_be_filtered_sorted_and_limited(manager: CheckpointManager) -> None:
    """Epoch range, order by facts or metrics, and limit do what they say; values that do not compare come last."""
    rows = ((1, 0.5), (2, float("nan")), (3, 0.1), (4, 0.3))
    saved = {epoch: save(manager, epoch, loss) for epoch, loss in rows}

    def epochs(**query: Any) -> list[int]:
        return [item.epoch for item in manager.list_checkpoints(**query)]

    assert len(saved) == 4
    assert epochs(min_epoch=2, max_epoch=3) == [2, 3]
    assert epochs(sort_by="epoch", descending=True, limit=2) == [4, 3]
    assert epochs(sort_by="val_loss") == [3, 4, 1, 2]
    assert epochs(sort_by="val_loss", descending=True) == [1, 4, 3, 2]
    assert epochs(limit=0) == []
    with pytest.raises(UnknownMetricError, match="val_los"):
        epochs(sort_by="val_los")
