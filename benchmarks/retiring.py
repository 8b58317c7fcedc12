"""What a cleanup costs for each checkpoint that goes, when few stay and when many do."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks.harness import Measure, Row, Settings, compare, interleave, settle, timed
from benchmarks.ours import EXPERIMENT, Ours
from benchmarks.states import FEW_LARGE, make
from ckpt_lib.policies.retention import KeepNewest

CLEANUP = "deletion by a cleanup, for each checkpoint of {count:,} of which {kept:,} stay"

_COUNT, _KEPT = 2000, (10, 1000)
_SMALL_COUNT, _SMALL_KEPT = 6, (1, 3)
_STATE_SIZE = "10KB"
"""Small, so that looking, deciding and deleting count, and not the disk that frees blocks."""
_ROUNDS = 3
_RMTREE = "shutil.rmtree of as many folders with the same two files, + fsync"


def rows(settings: Settings) -> Iterator[Row]:
    """Cleaning up copies of one store, and deleting the same files, each in a folder for each checkpoint."""
    is_whole = settings.largest == "1GB"
    count, all_kept = (_COUNT, _KEPT) if is_whole else (_SMALL_COUNT, _SMALL_KEPT)
    state = make(FEW_LARGE, _STATE_SIZE)
    original = Ours(settings.folder / "original", max_checkpoints=count)
    ids = [original.save(state) for _ in range(count)]
    original.manager.close()
    for kept in all_kept:
        contenders: dict[str, Measure] = {
            "ours": partial(_clean_up, settings.folder, count, kept),
            _RMTREE: partial(_remove_folders, settings.folder, ids, kept),
        }
        samples = interleave(contenders, rounds=min(settings.rounds, _ROUNDS), warm_up=min(settings.warm_up, 1))
        yield compare(
            samples,
            "ours",
            _RMTREE,
            name=CLEANUP.format(count=count, kept=kept),
            state=FEW_LARGE,
            size_bytes=state.size_bytes,
        )
    shutil.rmtree(settings.folder / "original")


def _clean_up(folder: Path, count: int, kept: int) -> float:
    """Seconds for each deletion, of a store that was not looked at before: what stays is verified as well."""
    place = folder / "copy"
    shutil.copytree(folder / "original", place)
    ours = Ours(place)
    settle()
    seconds = timed(lambda: ours.manager.cleanup_checkpoints(policy=KeepNewest(count=kept)))
    left = len(ours.manager.checkpoint_ids())
    if left != kept:
        raise RuntimeError(f"{left} checkpoints stayed, not {kept}")
    ours.manager.close()
    shutil.rmtree(place)
    return seconds / (count - kept)


def _remove_folders(folder: Path, ids: list[str], kept: int) -> float:
    place = folder / "folders"
    for checkpoint_id in ids:
        (place / checkpoint_id).mkdir(parents=True)
        for suffix in (".pt", ".json"):
            name = f"{checkpoint_id}{suffix}"
            shutil.copy(folder / "original" / EXPERIMENT / name, place / checkpoint_id / name)
    settle()
    going = ids[: len(ids) - kept]

    def remove() -> None:
        for checkpoint_id in going:
            shutil.rmtree(place / checkpoint_id)
        descriptor = os.open(place, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)

    seconds = timed(remove)
    shutil.rmtree(place)
    return seconds / len(going)
