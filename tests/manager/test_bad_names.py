"""Bad names: experiments, tags, descriptions and ids are refused alike, and lead nowhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.errors import CheckpointNotFoundError, ConfigError, InvalidNameError
from tests.helpers import save, snapshot
from tests.manager.hostile import HOSTILE_TEXTS, MISSING_ID

HOSTILE_NAMES = HOSTILE_TEXTS | {
    "device": "CON",
    "device with suffix": "nul.txt",
    "trailing dot": "run.",
    "hidden": ".run",
    "option": "-rf",
    "emoji": "run\U0001f680",
    "fullwidth": "\uff52un",
    "blank at the end": "my run ",
    "slash": "a/b",
}
HOSTILE_TAGS = {
    name: text
    for name, text in HOSTILE_TEXTS.items()
    if name not in {"dot", "dot-dot", "parent", "absolute", "windows path", "drive"}
}


@pytest.mark.parametrize("name", HOSTILE_NAMES.values(), ids=HOSTILE_NAMES)
def test_hostile_experiment_names(tmp_path: Path, name: str) -> None:
    """No name that could leave its folder, or that some system cannot hold, is accepted; nothing is created."""
    with pytest.raises(InvalidNameError):
        CheckpointManager(CheckpointConfig(checkpoint_dir=str(tmp_path / "s")), name)
    assert snapshot(tmp_path) == {}


@pytest.mark.parametrize("name", [None, 5, b"run", ["run"], True])
def test_experiment_names_of_another_type(tmp_path: Path, name: Any) -> None:
    """A name that is no text is refused alike."""
    with pytest.raises(InvalidNameError):
        CheckpointManager(CheckpointConfig(checkpoint_dir=str(tmp_path / "s")), name)


@pytest.mark.parametrize("tag", HOSTILE_TAGS.values(), ids=HOSTILE_TAGS)
def test_hostile_tags(filled: CheckpointManager, tag: str) -> None:
    """Tags that are not one line of visible text are refused when saving, editing and searching."""
    for call in (
        lambda: save(filled, 3, tags=["fine", tag]),
        lambda: filled.edit_checkpoint("latest", add_tags=[tag]),
        lambda: filled.edit_checkpoint("latest", remove_tags=[tag]),
        lambda: filled.list_checkpoints(tags=[tag]),
    ):
        with pytest.raises(InvalidNameError):
            call()


def test_tags_may_be_emoji(manager: CheckpointManager) -> None:
    """A tag never becomes a file name: nearly any visible text will do."""
    saved = save(manager, 1, tags=["\U0001f680 launch", "..looks-like-a-path"])
    assert manager.load_checkpoint("..looks-like-a-path")["checkpoint_id"] == saved


@pytest.mark.parametrize("tags", ["prod", 5, None, [None], [5], [["a"]], {"a": 1}.items()])
def test_tags_of_another_type(filled: CheckpointManager, tags: Any) -> None:
    """A single text is not taken for a list of letters, nor anything else for a list of tags."""
    for call in (lambda: save(filled, 3, tags=tags), lambda: filled.list_checkpoints(tags=tags)):
        with pytest.raises(InvalidNameError):
            call()


@pytest.mark.parametrize("text", ["a\0b", "a\x1b[31mred", "a\u202eb", "x" * 10_001, None, 5, b"d", "a\udce9"])
def test_hostile_descriptions(filled: CheckpointManager, text: Any) -> None:
    """A description that could steer a terminal, or is no text, is refused when saving; so are edits to it."""
    with pytest.raises(InvalidNameError):
        save(filled, 3, description=text)
    if text is not None:
        with pytest.raises(InvalidNameError):
            filled.edit_checkpoint("latest", description=text)


@pytest.mark.parametrize(
    "name", [*HOSTILE_TEXTS.values(), MISSING_ID, f"../run/{MISSING_ID}", f"{MISSING_ID}\n", f"{MISSING_ID}.pt", "tt"]
)
def test_names_that_no_checkpoint_has(filled: CheckpointManager, tmp_path: Path, name: str) -> None:
    """Every call that takes an id refuses a wrong or hostile one alike, and reads no file that it names."""
    calls: list[Callable[[], object]] = [
        lambda: filled.load_checkpoint(name),
        lambda: filled.validate_checkpoint(name),
        lambda: filled.validate_backup(name),
        lambda: filled.get_checkpoint(name),
        lambda: filled.compare_checkpoints(["latest", name]),
        lambda: filled.edit_checkpoint(name, add_tags=["x"]),
        lambda: filled.pin_checkpoint(name),
        lambda: filled.backup_checkpoint(name),
        lambda: filled.restore_checkpoint(name),
        lambda: filled.export_checkpoint(name, tmp_path / "exports"),
        lambda: filled.delete_checkpoint(name),
        lambda: filled.payload_version(name),
    ]
    for call in calls:
        with pytest.raises(CheckpointNotFoundError):
            call()
    assert not (tmp_path / "exports").exists()


@pytest.mark.parametrize("name", [None, 5, b"latest", ["latest"], True, 1.5])
def test_ids_of_another_type(filled: CheckpointManager, name: Any) -> None:
    """An id that is no text is one typed error, everywhere."""
    for call in (
        filled.load_checkpoint,
        filled.validate_checkpoint,
        filled.validate_backup,
        filled.get_checkpoint,
        filled.pin_checkpoint,
        filled.backup_checkpoint,
        filled.restore_checkpoint,
        filled.delete_checkpoint,
    ):
        with pytest.raises(ConfigError):
            call(name)


def test_a_backup_id_cannot_lead_out_of_the_folder(manager: CheckpointManager) -> None:
    """A path in place of an id is not followed, though a file is there."""
    saved = save(manager, 1)
    with pytest.raises(CheckpointNotFoundError):
        manager.validate_backup(f"../{saved}")
