"""Rows 14 to 16: altered bytes, files cut, lengthened, exchanged, missing and added. Each is noticed and located."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ckpt_lib.core.names import is_checkpoint_id
from ckpt_lib.errors import CheckpointNotFoundError
from tests.torture.damaged_samples import CHUNK_BYTES, Copy, Harm, Shelf, build_shelf, inflicted, missed
from tests.torture.rows import Outcome, Row
from tests.torture.settings import SETTINGS, Setting, everything_installed, setting, told_settings

SECTOR_BYTES = 4096

Inflict = Callable[[random.Random, Shelf], Harm]


# --- kinds of damage ---


def flip_a_bit(rng: random.Random, shelf: Shelf) -> Harm:
    """Of any file, the manifests as often as the payloads."""
    copy = rng.choice(shelf.copies)
    path, data = rng.choice([(copy.manifest, copy.manifest_bytes), rng.choice(list(copy.payload_files.items()))])
    flipped = bytearray(data)
    flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return {path: bytes(flipped)}


Change = Callable[[random.Random, bytearray], object]


def _of_payload(change: Change) -> Inflict:
    """Damage to one file of a payload, which ``change`` makes to its bytes."""

    def inflict(rng: random.Random, shelf: Shelf) -> Harm:
        path, data = rng.choice(list(rng.choice(shelf.copies).payload_files.items()))
        return {path: _changed(rng, data, change)}

    return inflict


def _of_manifest(change: Change) -> Inflict:
    def inflict(rng: random.Random, shelf: Shelf) -> Harm:
        copy = rng.choice(shelf.copies)
        return {copy.manifest: _changed(rng, copy.manifest_bytes, change)}

    return inflict


def _changed(rng: random.Random, data: bytes, change: Change) -> bytes:
    changed = bytearray(data)
    change(rng, changed)
    return bytes(changed)


def cut(rng: random.Random, data: bytearray) -> None:
    del data[rng.choice([0, len(data) - 1, rng.randrange(len(data)), rng.randrange(0, len(data), CHUNK_BYTES)]) :]


def lengthen(rng: random.Random, data: bytearray) -> None:
    size = rng.choice([1, 7, 500, CHUNK_BYTES, 20_000])
    data += rng.choice([bytes(size), rng.randbytes(size), bytes(data[-size:])])


def zero_a_run(rng: random.Random, data: bytearray) -> None:
    start = rng.randrange(len(data))
    size = min(rng.choice([1, 2, 16, 100, 5000, 40_000]), len(data) - start)
    data[start : start + size] = bytes(size)


def zero_a_sector(rng: random.Random, data: bytearray) -> None:
    start = rng.randrange(0, len(data), SECTOR_BYTES)
    size = min(SECTOR_BYTES, len(data) - start)
    data[start : start + size] = bytes(size)


def exchange_blocks(rng: random.Random, data: bytearray) -> None:
    size = rng.choice([64, 512, SECTOR_BYTES])
    starts = range(0, len(data) - size + 1, size)
    if len(starts) >= 2:
        one, other = rng.sample(starts, 2)
        data[one : one + size], data[other : other + size] = data[other : other + size], data[one : one + size]


def _two(rng: random.Random, shelf: Shelf) -> tuple[Copy, Copy]:
    """Two checkpoints, or two backups; half of the time those whose files have the same size."""
    side = rng.choice([True, False])
    copies = [copy for copy in shelf.copies if copy.is_backup == side]
    one, other = rng.sample(rng.choice([copies[:2], copies]), 2)
    return one, other


def exchange_payloads(rng: random.Random, shelf: Shelf) -> Harm:
    (one, data), (other, other_data) = _two_files(rng, shelf)
    return {one: other_data, other: data}


def another_payload(rng: random.Random, shelf: Shelf) -> Harm:
    (one, _), (_, other_data) = _two_files(rng, shelf)
    return {one: other_data}


def _two_files(rng: random.Random, shelf: Shelf) -> tuple[tuple[Path, bytes], tuple[Path, bytes]]:
    """The same file of two payloads, or any two where they have none in common."""
    one, other = (list(copy.payload_files.items()) for copy in _two(rng, shelf))
    number = rng.randrange(min(len(one), len(other)))
    return one[number], other[number]


def exchange_manifests(rng: random.Random, shelf: Shelf) -> Harm:
    one, other = _two(rng, shelf)
    return {one.manifest: other.manifest_bytes, other.manifest: one.manifest_bytes}


DAMAGES: dict[str, Inflict] = {
    "cut": _of_payload(cut),
    "lengthened": _of_payload(lengthen),
    "4 KiB zeroed": _of_payload(zero_a_sector),
    "a run zeroed": _of_payload(zero_a_run),
    "blocks exchanged": _of_payload(exchange_blocks),
    "two payloads exchanged": exchange_payloads,
    "the payload of another": another_payload,
    "two manifests exchanged": exchange_manifests,
    "a manifest cut": _of_manifest(cut),
    "a manifest lengthened": _of_manifest(lengthen),
    "a run of a manifest zeroed": _of_manifest(zero_a_run),
}


# --- what is missing, what is too much ---


def lose_a_payload(rng: random.Random, shelf: Shelf) -> Harm:
    return {rng.choice(list(rng.choice(shelf.copies).payload_files)): None}


def lose_a_manifest(rng: random.Random, shelf: Shelf) -> Harm:
    return {rng.choice(shelf.copies).manifest: None}


def add_a_file(rng: random.Random, shelf: Shelf) -> Harm:
    """Anything a person may put there."""
    return {shelf.folder / rng.choice(["notes.txt", "model.pt", "x.json", ".hidden", "x.tmp"]): rng.randbytes(100)}


def add_a_payload(rng: random.Random, shelf: Shelf) -> Harm:
    return {shelf.folder / f"{_strange_id(rng)}.pt": rng.choice(list(rng.choice(shelf.copies).payload.values()))}


def add_a_manifest(rng: random.Random, shelf: Shelf) -> Harm:
    """Rubbish, or the manifest of another checkpoint, under a name of ours."""
    content = rng.choice([rng.choice(shelf.copies).manifest_bytes, b"{}", b"", rng.randbytes(100)])
    return {shelf.folder / f"{_strange_id(rng)}.json": content}


def _strange_id(rng: random.Random) -> str:
    return f"checkpoint_epoch_{rng.randrange(1000):04}_step_{rng.randrange(10**6):06}_20200101_000000"


LOSSES: dict[str, Inflict] = {"payloads missing": lose_a_payload, "manifests missing": lose_a_manifest}
ADDITIONS: dict[str, Inflict] = {
    "foreign files": add_a_file,
    "payloads without manifest": add_a_payload,
    "false manifests": add_a_manifest,
}


def missed_loss_of_manifest(shelf: Shelf, path: Path) -> Iterator[str]:
    """A checkpoint without manifest is none: each call says so by its id, and what is left of it stays."""
    sample = shelf.sample_of(path)
    is_backup = path == sample.backup.manifest
    manager = shelf.manager_of_backups() if is_backup else shelf.manager()
    listed = manager.backup_ids() if is_backup else manager.checkpoint_ids()
    doors: list[Callable[[str], object]] = [manager.validate_backup, manager.restore_checkpoint]
    if not is_backup:
        doors = [manager.validate_checkpoint, manager.load_checkpoint, manager.delete_checkpoint]
    if path.stem in listed:
        yield "it is listed"
    for door in doors:
        try:
            door(path.stem)
        except CheckpointNotFoundError as error:
            if path.stem not in str(error):
                yield f"{door} says {error!r}"
        else:
            yield f"{door} finds it"


def missed_addition(shelf: Shelf, path: Path) -> Iterator[str]:
    """What is not ours changes no answer, is no checkpoint, and is still there after a cleanup."""
    manager = shelf.manager()
    if manager.resume() is None or [item.checkpoint_id for item in manager.list_checkpoints()] != shelf.ids():
        yield "the list of checkpoints is another"
    if path.suffix == ".json" and is_checkpoint_id(path.stem):
        reports = [report for report in manager.validate_all() if not report]
        if [damage.file for report in reports for damage in report.damages] != [path.name]:
            yield f"validate_all names {reports}"
    if not any(path.stem in finding.name for finding in manager.doctor().findings):
        yield "the doctor does not name it"
    before = shelf.site.read(path)
    manager.cleanup_checkpoints()
    if before is None or shelf.site.read(path) != before:
        yield "cleanup_checkpoints did not leave it alone"


# --- rows ---


def build_shelves(folder: Path, count: int) -> list[Shelf]:
    """A shelf of each format on each kind of store, or so many of them, which take turns."""
    return [build_shelf(folder / str(number), setting(number)) for number in range(min(count, SETTINGS))]


def inflict_many(shelves: Sequence[Shelf], kinds: dict[str, Inflict], count: int, seed: str) -> Outcome:
    """``count`` damages, kinds and shelves in turn; each is judged while it is the only one, and put right."""
    outcome, counted, attempt, names = Outcome(), Counter[str](), 0, list(kinds)
    struck = Counter[Setting]()
    originals = {path: data for shelf in shelves for path, data in shelf.files().items()}
    while outcome.injected < count:
        attempt += 1
        shelf, name = shelves[outcome.injected % len(shelves)], names[outcome.injected % len(names)]
        harm = kinds[name](random.Random(f"{seed} {attempt}"), shelf)
        if any(data == originals[path] for path, data in harm.items()):
            continue  # zeros zeroed are no damage
        outcome.injected += 1
        counted[name] += 1
        struck[shelf.setting] += 1
        with inflicted(shelf, harm):
            outcome.violations += [f"{attempt}, {shelf.setting}, {name}: {reason}" for reason in missed(shelf, harm)]
    outcome.detail = ", ".join(f"{counted[name]} {name}" for name in names) + told_settings(struck)
    return outcome


def _flips(count: int, seed: str, folder: Path) -> Outcome:
    struck = Counter[str]()

    def flip(rng: random.Random, shelf: Shelf) -> Harm:
        harm = flip_a_bit(rng, shelf)
        (path,) = harm
        where = "backups" if path.is_relative_to(shelf.root / "backups") else "checkpoints"
        is_manifest = any(path == copy.manifest for copy in shelf.copies)
        struck[f"{'manifests' if is_manifest else 'payloads'} of {where}"] += 1
        return harm

    with everything_installed():
        outcome = inflict_many(build_shelves(folder, count), {"a bit flipped": flip}, count, seed)
    where = ", ".join(f"{number} in {name}" for name, number in sorted(struck.items()))
    outcome.detail = f"{where};{outcome.detail.partition(';')[2]}"
    return outcome


def _damages(count: int, seed: str, folder: Path) -> Outcome:
    with everything_installed():
        return inflict_many(build_shelves(folder, count), DAMAGES, count, seed)


def _strangers(count: int, seed: str, folder: Path) -> Outcome:
    with everything_installed():
        shelves = build_shelves(folder, math.ceil(count / len(LOSSES | ADDITIONS)))
        return _add_and_lose(shelves, count, seed)


def _add_and_lose(shelves: Sequence[Shelf], count: int, seed: str) -> Outcome:
    outcome, counted, kinds = Outcome(), Counter[str](), {**LOSSES, **ADDITIONS}
    struck = Counter[Setting]()
    for number in range(count):
        shelf = shelves[number // len(kinds) % len(shelves)]
        struck[shelf.setting] += 1
        name = list(kinds)[number % len(kinds)]
        harm = kinds[name](random.Random(f"{seed} {number}"), shelf)
        (path,) = harm
        with inflicted(shelf, harm):
            if name in ADDITIONS:
                reasons = missed_addition(shelf, path)
            elif any(path == copy.manifest for copy in shelf.copies):
                reasons = missed_loss_of_manifest(shelf, path)
            else:
                reasons = missed(shelf, harm)
            outcome.violations += [f"{number}, {shelf.setting}, {name}, {path.name}: {reason}" for reason in reasons]
        for original, data in shelf.files().items():
            if not _is_as_before(original, shelf.site.read(original), data):
                outcome.violations.append(f"{number}, {name}: {original.name} has changed")
            shelf.site.write(original, data)
        counted[name] += 1
    outcome.injected = count
    outcome.detail = ", ".join(f"{counted[name]} {name}" for name in kinds) + told_settings(struck)
    return outcome


def _is_as_before(path: Path, read: bytes | None, data: bytes) -> bool:
    """Whether a file holds what it did, but for the note that a run has resumed from it."""
    if read is None or not is_checkpoint_id(path.stem) or path.suffix != ".json":
        return read == data
    found, before = json.loads(read), json.loads(data)
    return all(found[name] == before[name] for name in found.keys() | before.keys() if name not in _NOTED_BY_A_RESUME)


_NOTED_BY_A_RESUME = {"in_use_until", "revision", "manifest_sha256"}

ROWS = [
    Row(
        number=14,
        fault="a bit flipped in any file, manifests too",
        must_hold="reported by every check and load, with its file and chunk; no tensor reaches the caller",
        unit="flips",
        count=10_000,
        sample=30,  # each format on each kind of store
        run=_flips,
    ),
    Row(
        number=15,
        fault="files cut, lengthened, zeroed in part, exchanged",
        must_hold="as for flips",
        unit="damages",
        count=2_000,
        sample=55,  # each kind in each format
        run=_damages,
    ),
    Row(
        number=16,
        fault="a missing or an extra file",
        must_hold="named; what is not ours is no checkpoint, and stays",
        unit="files",
        count=200,
        sample=30,
        run=_strangers,
    ),
]
