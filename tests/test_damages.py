"""Two thousand random damages of real files: each is noticed, told where it is, and kept from reaching the caller."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager, commit
from ckpt_lib.errors import CorruptCheckpointError, IntegrityError, UnsupportedSchemaError
from ckpt_lib.stream import Damage, HashingWriter
from tests.helpers import fingerprint

CHUNK_BYTES = 4096
SEED = 20261124
SECTOR_BYTES = 4096


def linear(*widths: int) -> nn.Module:
    return nn.Sequential(*(nn.Linear(one, other) for one, other in pairwise(widths)))


@dataclass(frozen=True)
class Saved:
    """A checkpoint as it was saved, and what it would be loaded into."""

    checkpoint_id: str
    payload: Path
    payload_bytes: bytes
    manifest_bytes: bytes
    owners: dict[str, Any]

    @property
    def manifest(self) -> Path:
        return self.payload.with_suffix(".json")

    def state(self) -> str:
        return fingerprint([owner.state_dict() for owner in self.owners.values()])


@dataclass(frozen=True)
class Store:
    """Checkpoints of several shapes in one experiment, without backups that could help."""

    root: Path
    saved: list[Saved]

    def manager(self) -> CheckpointManager:
        """One that has seen nothing yet."""
        return CheckpointManager(CheckpointConfig(checkpoint_dir=str(self.root), backup_checkpoints=False), "run")

    def original(self, path: Path) -> bytes:
        for saved in self.saved:
            if path == saved.payload:
                return saved.payload_bytes
            if path == saved.manifest:
                return saved.manifest_bytes
        raise KeyError(path)


Harm = dict[Path, bytes]
"""What lies in some of the files afterwards."""


def add(store: Store, widths: tuple[int, ...], *, optimizer: bool = False, extra: dict[str, Any] | None = None) -> None:
    """Save a model that has been trained for a step, to be loaded into a model of the same shape that has not."""
    torch.manual_seed(SEED + len(store.saved))
    model, fresh = linear(*widths), linear(*widths)
    trained = torch.optim.AdamW(model.parameters(), lr=0.01) if optimizer else None
    if trained is not None:
        torch.autograd.backward(model(torch.randn(4, widths[0])).square().mean())
        trained.step()
    manager = store.manager()
    checkpoint_id = manager.save_checkpoint(
        model=model, optimizer=trained, epoch=len(store.saved), extra_state=extra, tags=[f"shape {len(store.saved)}"]
    )
    assert checkpoint_id is not None
    payload = store.root / "run" / f"{checkpoint_id}.pt"
    owners: dict[str, Any] = {"model": fresh}
    if optimizer:
        owners["optimizer"] = torch.optim.AdamW(fresh.parameters(), lr=0.05)
    manifest_bytes = payload.with_suffix(".json").read_bytes()
    store.saved.append(Saved(checkpoint_id, payload, payload.read_bytes(), manifest_bytes, owners))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Twins of equal size with optimizers, a file of one chunk, one of many, and one of many small tensors."""
    store = Store(tmp_path_factory.mktemp("damages") / "store", [])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commit, "HashingWriter", partial(HashingWriter, chunk_size_bytes=CHUNK_BYTES))
        add(store, (48, 64, 16), optimizer=True)
        add(store, (48, 64, 16), optimizer=True)
        add(store, (2, 1))
        add(store, (300, 200))
        add(store, (3, 2), extra={str(number): torch.randn(1 + number % 40) for number in range(250)})
    sizes = [len(saved.payload_bytes) for saved in store.saved]
    assert sizes[0] == sizes[1]
    assert sizes[2] < CHUNK_BYTES < 50 * CHUNK_BYTES < sizes[3]
    return store


# --- damages ---


def of_payload(change: Callable[[random.Random, bytearray], object]) -> Callable[[random.Random, Store], Harm]:
    """Damage to one payload, which ``change`` makes to its bytes."""

    def inflict(rng: random.Random, store: Store) -> Harm:
        saved = rng.choice(store.saved)
        data = bytearray(saved.payload_bytes)
        change(rng, data)
        return {saved.payload: bytes(data)}

    return inflict


def flip_bits(rng: random.Random, data: bytearray) -> None:
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def zero_a_run(rng: random.Random, data: bytearray) -> None:
    start = rng.randrange(len(data))
    size = min(rng.choice([1, 2, 16, 100, 5000, 40_000]), len(data) - start)
    data[start : start + size] = bytes(size)


def zero_a_sector(rng: random.Random, data: bytearray) -> None:
    start = rng.randrange(0, len(data), SECTOR_BYTES)
    size = min(SECTOR_BYTES, len(data) - start)
    data[start : start + size] = bytes(size)


def cut(rng: random.Random, data: bytearray) -> None:
    del data[rng.choice([0, len(data) - 1, rng.randrange(len(data)), rng.randrange(0, len(data), CHUNK_BYTES)]) :]


def lengthen(rng: random.Random, data: bytearray) -> None:
    size = rng.choice([1, 7, 500, CHUNK_BYTES, 20_000])
    data += rng.choice([bytes(size), rng.randbytes(size), bytes(data[-size:])])


def exchange_blocks(rng: random.Random, data: bytearray) -> None:
    size = rng.choice([64, 512, SECTOR_BYTES])
    starts = range(0, len(data) - size + 1, size)
    if len(starts) >= 2:
        one, other = rng.sample(starts, 2)
        data[one : one + size], data[other : other + size] = data[other : other + size], data[one : one + size]


def exchange_payloads(rng: random.Random, store: Store) -> Harm:
    one, other = rng.choice([store.saved[:2], rng.sample(store.saved, 2)])
    return {one.payload: other.payload_bytes, other.payload: one.payload_bytes}


def another_payload(rng: random.Random, store: Store) -> Harm:
    one, other = rng.choice([rng.sample(store.saved[:2], 2), rng.sample(store.saved, 2)])
    return {one.payload: other.payload_bytes}


def alter_manifest(rng: random.Random, store: Store) -> Harm:
    saved = rng.choice(store.saved)
    data = bytearray(saved.manifest_bytes)
    data[rng.randrange(len(data))] = rng.randrange(256)
    return {saved.manifest: bytes(data)}


def exchange_manifests(rng: random.Random, store: Store) -> Harm:
    one, other = rng.sample(store.saved, 2)
    return {one.manifest: other.manifest_bytes, other.manifest: one.manifest_bytes}


DAMAGES: dict[str, tuple[int, Callable[[random.Random, Store], Harm]]] = {
    "bits flipped": (500, of_payload(flip_bits)),
    "a run zeroed": (240, of_payload(zero_a_run)),
    "a sector zeroed": (200, of_payload(zero_a_sector)),
    "cut": (220, of_payload(cut)),
    "lengthened": (200, of_payload(lengthen)),
    "blocks exchanged": (200, of_payload(exchange_blocks)),
    "two payloads exchanged": (80, exchange_payloads),
    "the payload of another": (80, another_payload),
    "a byte of a manifest": (300, alter_manifest),
    "two manifests exchanged": (40, exchange_manifests),
}


@contextmanager
def inflicted(store: Store, harm: Harm) -> Iterator[None]:
    for path, data in harm.items():
        path.write_bytes(data)
    try:
        yield
    finally:
        for path in harm:
            path.write_bytes(store.original(path))


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


def missed(store: Store, saved: Saved, path: Path, found: bytes) -> Iterator[str]:
    """Every way in which a damage of ``path`` was not noticed, not told rightly, or reached the caller."""
    manager, before = store.manager(), saved.state()

    def judged(what: str, damages: tuple[Damage, ...]) -> Iterator[str]:
        if {damage.file for damage in damages} != {path.name}:
            yield f"{what} names {[damage.file for damage in damages]}"
        if path == saved.payload and told_places(damages) != damaged_places(saved.payload_bytes, found):
            yield f"{what} tells of {[(damage.kind, damage.start, damage.stop) for damage in damages]}"

    for deep in (True, False):
        report = manager.validate_checkpoint(saved.checkpoint_id, deep=deep)
        if report:
            yield f"validate_checkpoint(deep={deep}) finds it intact"
        yield from judged(f"validate_checkpoint(deep={deep})", report.damages)
    for owners in ({}, saved.owners):
        try:
            manager.load_checkpoint(saved.checkpoint_id, **owners)
        except CorruptCheckpointError as error:
            yield from judged(f"load_checkpoint({', '.join(owners)})", error.damages)
        except (IntegrityError, UnsupportedSchemaError) as error:
            if path == saved.payload or path.stem not in str(error):
                yield f"load_checkpoint({', '.join(owners)}) says {error!r}"
        else:
            yield f"load_checkpoint({', '.join(owners)}) loads it"
    if saved.state() != before:
        yield "the model has changed"


@pytest.mark.parametrize("kind", DAMAGES)
def test_no_damage_is_missed(store: Store, kind: str) -> None:
    """Both checks and both ways to load refuse it, name the file and exactly the chunks; the model is unchanged."""
    wanted, inflict = DAMAGES[kind]
    counted, misses, attempt = 0, [], 0
    while counted < wanted:
        attempt += 1
        harm = inflict(random.Random(f"{SEED} {kind} {attempt}"), store)
        if any(data == store.original(path) for path, data in harm.items()):
            continue  # zeros zeroed are no damage
        counted += 1
        with inflicted(store, harm):
            for path, data in harm.items():
                (saved,) = (saved for saved in store.saved if saved.checkpoint_id == path.stem)
                misses += [f"{attempt}, {path.name}: {reason}" for reason in missed(store, saved, path, data)]
    print(f"{kind}: {counted} damages, {len(misses)} missed")
    assert misses == []


def test_there_are_two_thousand() -> None:
    """The number that is promised."""
    assert sum(count for count, _ in DAMAGES.values()) >= 2000


def test_what_is_not_damaged_is_loaded(store: Store) -> None:
    """The other side: nothing is reported of files that are as they were saved, and loading does change the model."""
    for number, saved in enumerate(store.saved):
        manager = store.manager()
        assert manager.validate_checkpoint(saved.checkpoint_id)
        assert manager.validate_checkpoint(saved.checkpoint_id, deep=False)
        fresh = linear(*[(48, 64, 16), (48, 64, 16), (2, 1), (300, 200), (3, 2)][number])
        before = fingerprint(fresh.state_dict())
        loaded = manager.load_checkpoint(saved.checkpoint_id, model=fresh)
        assert fingerprint(fresh.state_dict()) == fingerprint(loaded["model_state_dict"]) != before
