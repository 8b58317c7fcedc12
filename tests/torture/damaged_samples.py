"""Checkpoints to be damaged, and the judgement whether a damage was noticed, told rightly and kept from the caller."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.core.damage import Damage
from ckpt_lib.errors import CheckpointError, CorruptCheckpointError, IntegrityError, UnsupportedSchemaError
from ckpt_lib.experiment import commit
from ckpt_lib.stream import HashingWriter
from tests.formats.every_format import NPZ
from tests.torture.fingerprints import fingerprint
from tests.torture.settings import Setting, Site

CHUNK_BYTES = 4096
TORCH = Setting()
_SEED = 20261124
_EXPERIMENT = "run"


@dataclass(frozen=True)
class Copy:
    """A payload and its manifest as they were written, in the experiment or among its backups."""

    checkpoint_id: str
    folder: Path
    payload: dict[str, bytes]
    """The bytes of each file, by its name in the folder."""
    manifest_bytes: bytes
    is_backup: bool = False

    @classmethod
    def read(cls, site: Site, checkpoint_id: str, folder: Path, *, is_backup: bool = False) -> Copy:
        manifest = site.read(folder / f"{checkpoint_id}.json")
        assert manifest is not None
        names = [file["name"] for file in json.loads(manifest)["files"]]
        return cls(checkpoint_id, folder, {name: _read(site, folder / name) for name in names}, manifest, is_backup)

    @property
    def manifest(self) -> Path:
        return self.folder / f"{self.checkpoint_id}.json"

    @property
    def payload_files(self) -> dict[Path, bytes]:
        return {self.folder / name: data for name, data in self.payload.items()}

    @property
    def size_bytes(self) -> int:
        return sum(map(len, self.payload.values()))

    def files(self) -> dict[Path, bytes]:
        return {**self.payload_files, self.manifest: self.manifest_bytes}

    def holds(self, path: Path) -> bool:
        return path == self.manifest or (path.is_relative_to(self.folder) and self._name_of(path) in self.payload)

    def _name_of(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()


def _read(site: Site, path: Path) -> bytes:
    data = site.read(path)
    assert data is not None
    return data


@dataclass(frozen=True)
class Sample:
    """A checkpoint, its backup, and what it would be loaded into."""

    original: Copy
    backup: Copy
    owners: dict[str, Any]

    def state(self) -> str:
        return fingerprint([owner.state_dict() for owner in self.owners.values()])


Harm = dict[Path, bytes | None]
"""What lies in some of the files afterwards; ``None`` where there is none any more."""


@dataclass(frozen=True)
class Shelf:
    """Checkpoints of several shapes in one experiment. Their backups lie where no check of them looks for help."""

    root: Path
    setting: Setting = TORCH
    samples: list[Sample] = field(default_factory=list)

    @property
    def site(self) -> Site:
        return Site(self.root, self.setting.kind)

    @property
    def folder(self) -> Path:
        return self.root / "store" / _EXPERIMENT

    def manager(self) -> CheckpointManager:
        """One that has seen nothing yet, and knows of no backups."""
        return self._manager(backup_dir=self.site.url("elsewhere"))

    def manager_of_backups(self) -> CheckpointManager:
        return self._manager(backup_dir=self.site.url("backups"))

    def _manager(self, **options: Any) -> CheckpointManager:
        options = {"backup_checkpoints": False, "save_rng": False, "max_checkpoints": 99, "max_backups": 99, **options}
        options |= self.setting.options
        return CheckpointManager(CheckpointConfig(checkpoint_dir=self.site.url("store"), **options), _EXPERIMENT)

    @property
    def copies(self) -> list[Copy]:
        return [copy for sample in self.samples for copy in (sample.original, sample.backup)]

    def ids(self) -> list[str]:
        """The checkpoints, oldest first."""
        return [item.original.checkpoint_id for item in self.samples]

    def files(self) -> dict[Path, bytes]:
        """Every file that may be damaged, with what it should hold."""
        return {path: data for copy in self.copies for path, data in copy.files().items()}

    def sample_of(self, path: Path) -> Sample:
        (found,) = (item for item in self.samples if item.original.holds(path) or item.backup.holds(path))
        return found


def build_shelf(root: Path, setting: Setting = TORCH) -> Shelf:
    """Twins of equal size with optimizers, a file of one chunk, one of many, and one of many small tensors."""
    shelf = Shelf(root, setting)
    with patch.object(commit, "HashingWriter", partial(HashingWriter, chunk_size_bytes=CHUNK_BYTES)):
        _add(shelf, (48, 64, 16), optimizer=True)
        _add(shelf, (48, 64, 16), optimizer=True)
        _add(shelf, (2, 1))
        _add(shelf, (300, 200))
        small = 250 if setting.format != NPZ else 10  # which has a file for each of them
        _add(shelf, (3, 2), extra={str(number): torch.randn(1 + number % 40) for number in range(small)})
    sizes = [item.original.size_bytes for item in shelf.samples]
    assert sizes[0] == sizes[1] or "+" in setting.format
    assert max(len(data) for data in shelf.samples[2].original.payload.values()) < CHUNK_BYTES
    assert sizes[3] > 40 * CHUNK_BYTES
    return shelf


def _add(
    shelf: Shelf, widths: tuple[int, ...], *, optimizer: bool = False, extra: dict[str, Any] | None = None
) -> None:
    """Save and back up a model, trained for a step if it has an optimizer, to be loaded into one that is not."""
    torch.manual_seed(_SEED + len(shelf.samples))
    model, fresh = linear(*widths), linear(*widths)
    trained = torch.optim.AdamW(model.parameters(), lr=0.01) if optimizer else None
    if trained is not None:
        torch.autograd.backward(model(torch.randn(4, widths[0])).square().mean())
        trained.step()
    manager, number = shelf.manager_of_backups(), len(shelf.samples)
    checkpoint_id = manager.save_checkpoint(
        model=model, optimizer=trained, epoch=number, extra_state=extra, tags=[f"shape {number}"]
    )
    assert checkpoint_id is not None
    manager.backup_checkpoint(checkpoint_id)
    owners: dict[str, Any] = {"model": fresh}
    if optimizer:
        owners["optimizer"] = torch.optim.AdamW(fresh.parameters(), lr=0.05)
    backup = Copy.read(shelf.site, checkpoint_id, shelf.root / "backups" / _EXPERIMENT, is_backup=True)
    shelf.samples.append(Sample(Copy.read(shelf.site, checkpoint_id, shelf.folder), backup, owners))


def linear(*widths: int) -> nn.Module:
    return nn.Sequential(*(nn.Linear(one, other) for one, other in pairwise(widths)))


@contextmanager
def inflicted(shelf: Shelf, harm: Harm) -> Iterator[None]:
    """Damage files, and put them right again in the end."""
    originals = shelf.files()
    for path, data in harm.items():
        shelf.site.write(path, data)
    try:
        yield
    finally:
        for path in harm:
            shelf.site.write(path, originals.get(path))


# --- what has to be told ---


def damaged_places(original: bytes, found: bytes) -> set[tuple[str, int, int]]:
    """Each chunk that differs, and the bytes that are too few or too many.

    The chunk in which a file of another size ends early or late is told by its size alone.
    """
    places: set[tuple[str, int, int]] = set()
    compared = min(len(original), len(found))
    if len(original) != len(found):
        compared -= compared % CHUNK_BYTES
        kind = "truncated" if len(found) < len(original) else "extended"
        places.add((kind, min(len(original), len(found)), max(len(original), len(found))))
    for start in range(0, compared, CHUNK_BYTES):
        stop = min(start + CHUNK_BYTES, compared)
        if original[start:stop] != found[start:stop]:
            places.add(("altered", start, stop))
    return places


def told_places(damages: Iterable[Damage]) -> set[tuple[str, int, int]]:
    """What was reported, neighbouring chunks taken apart."""
    places: set[tuple[str, int, int]] = set()
    for damage in damages:
        if damage.kind == "altered":
            starts = range(damage.start, damage.stop, CHUNK_BYTES)
            places |= {("altered", start, min(start + CHUNK_BYTES, damage.stop)) for start in starts}
        else:
            places.add((damage.kind, damage.start, damage.stop))
    return places


def missed(shelf: Shelf, harm: Harm) -> Iterator[str]:
    """Every way in which damages, inflicted now, are not noticed, not told rightly, or reach the caller."""
    for path, data in harm.items():
        sample = shelf.sample_of(path)
        copy = next(copy for copy in (sample.original, sample.backup) if copy.holds(path))
        judge = _Judge(copy, path, data)
        reasons = judge.of_backup(shelf) if copy.is_backup else judge.of_checkpoint(shelf, sample)
        yield from (f"{path.parent.parent.name}/{path.name}: {reason}" for reason in reasons)


@dataclass(frozen=True)
class _Judge:
    """Looks at one damaged file through every door."""

    copy: Copy
    path: Path
    data: bytes | None

    def of_checkpoint(self, shelf: Shelf, sample: Sample) -> Iterator[str]:
        manager, before = shelf.manager(), sample.state()
        yield from self._of_reports(manager.validate_checkpoint)
        for owners in ({}, sample.owners):
            yield from self._of_door(
                f"load_checkpoint({', '.join(owners)})",
                partial(manager.load_checkpoint, self.copy.checkpoint_id, **owners),
            )
        if sample.state() != before:
            yield "the model has changed"

    def of_backup(self, shelf: Shelf) -> Iterator[str]:
        manager = shelf.manager_of_backups()
        sample = shelf.sample_of(self.path)
        yield from self._of_reports(manager.validate_backup)
        yield from self._of_door("restore_checkpoint", partial(manager.restore_checkpoint, self.copy.checkpoint_id))
        if any(shelf.site.read(path) != data for path, data in sample.original.files().items()):
            yield "the checkpoint has changed"

    def _of_reports(self, validate: Callable[..., Any]) -> Iterator[str]:
        for deep in (True, False):
            report, what = validate(self.copy.checkpoint_id, deep=deep), f"{validate.__name__}(deep={deep})"
            if report:
                yield f"{what} finds it intact"
            yield from self._of_damages(what, report.damages)

    def _of_door(self, what: str, enter: Callable[[], object]) -> Iterator[str]:
        try:
            enter()
        except CorruptCheckpointError as error:
            yield from self._of_damages(what, error.damages)
        except (IntegrityError, UnsupportedSchemaError) as error:
            if self.path != self.copy.manifest or self.path.stem not in str(error):
                yield f"{what} says {error!r}"
        except CheckpointError as error:
            yield f"{what} says {error!r}"
        else:
            yield f"{what} takes it"

    def _of_damages(self, what: str, damages: Iterable[Damage]) -> Iterator[str]:
        damages = list(damages)
        if {damage.file for damage in damages} != {self.path.relative_to(self.copy.folder).as_posix()}:
            yield f"{what} names {[damage.file for damage in damages]}"
        if self.path != self.copy.manifest and told_places(damages) != self._places():
            yield f"{what} tells of {[(damage.kind, damage.start, damage.stop) for damage in damages]}"

    def _places(self) -> set[tuple[str, int, int]]:
        if self.data is None:
            return {("missing", 0, 0)}
        return damaged_places(self.copy.payload_files[self.path], self.data)
