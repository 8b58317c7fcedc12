"""The two files of a checkpoint and of its backup, and what may become of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ckpt_lib import CheckpointManager
from tests.helpers import experiment_folder, flip_bit, manifest_path, payload_path, truncate

Damage = Callable[[Path, Path], object]


def _unlink(*paths: Path) -> None:
    for path in paths:
        path.unlink()


DAMAGES: dict[str, Damage] = {
    "flipped": lambda payload, _: flip_bit(payload, 300),
    "truncated": lambda payload, _: truncate(payload, 300),
    "payload missing": lambda payload, _: payload.unlink(),
    "manifest flipped": lambda _, manifest: flip_bit(manifest, 60),
    "manifest missing": lambda _, manifest: manifest.unlink(),
    "both missing": _unlink,
}


def backup_folder(manager: CheckpointManager) -> Path:
    """Where a manager's backups lie."""
    if manager.config.backup_dir is None:
        return experiment_folder(manager) / "backups"
    return Path(manager.config.backup_dir) / manager.experiment_name


def backup_pair(manager: CheckpointManager, checkpoint_id: str) -> tuple[Path, Path]:
    folder = backup_folder(manager)
    return folder / f"{checkpoint_id}.pt", folder / f"{checkpoint_id}.json"


def pair(manager: CheckpointManager, checkpoint_id: str) -> tuple[Path, Path]:
    return payload_path(manager, checkpoint_id), manifest_path(manager, checkpoint_id)
