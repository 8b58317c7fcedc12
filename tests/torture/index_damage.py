"""Row 45: bytes of an index file are altered; whatever is asked then, each answer is the right one or none."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy.engine import make_url

from ckpt_lib.core.manifest import Manifest
from ckpt_lib.core.metadata import CheckpointMetadata
from ckpt_lib.index.database import IndexDatabase
from ckpt_lib.index.listing import FolderKey, Known, KnownFolder
from ckpt_lib.index.selection import Selection
from tests.core.examples import example
from tests.index.examples import STORE, note
from tests.torture.rows import Outcome, Row

_EXPERIMENT = "a"
_LONGEST_RUN_BYTES = 512


@dataclass(frozen=True)
class Answers:
    """What a database answers to some questions; nothing, where it cannot say."""

    known: dict[str, Known] = field(default_factory=dict)
    folders: dict[str, KnownFolder] = field(default_factory=dict)
    found: Sequence[CheckpointMetadata] = ()
    by_epoch: Sequence[CheckpointMetadata] = ()

    def is_right_or_nothing(self, right: Answers) -> bool:
        if not self.known.items() <= right.known.items():  # what is not known is read
            return False
        pairs = (
            (self.folders, right.folders),
            (self.found, right.found),
            (self.by_epoch, right.by_epoch),
        )
        return all(not mine or mine == theirs for mine, theirs in pairs)

    @property
    def manifests(self) -> Sequence[Manifest]:
        return [item.record for item in self.known.values() if isinstance(item.record, Manifest)]


def ask(database: IndexDatabase) -> Answers:
    """Ask everything that a list asks."""
    return Answers(
        database.known(FolderKey(STORE, _EXPERIMENT)),
        database.folders(STORE),
        database.find(STORE, Selection.of(sort_by="loss", where=["loss<9"])) or (),
        database.find(STORE, Selection.of(where=["epoch>=2"])) or (),
    )


def filled(path: Path) -> Answers:
    """Write an index of three checkpoints, and return what it answers."""
    database = IndexDatabase(make_url(f"sqlite:///{path}"))
    manifests = [
        example(
            checkpoint_id=f"checkpoint_epoch_000{number}_step_000100_20231201_143022",
            uid=f"{number:032x}",
            sequence=number,
            epoch=number,
            model_name="Net",
            metrics={"loss": 1 / number},
        )
        for number in (1, 2, 3)
    ]
    assert note(database, _EXPERIMENT, manifests)
    right = ask(database)
    database.close()
    return right


def mutate(path: Path, whole: bytes, seed: int) -> None:
    """Write an index file with some of its bytes altered, lost or doubled."""
    chance = random.Random(seed)
    data = bytearray(whole)
    for _ in range(chance.choice([1, 1, 1, 2, 5])):
        at = chance.randrange(len(data))
        length = chance.choice([1, 1, 1, 4, chance.randrange(1, _LONGEST_RUN_BYTES)])
        match chance.randrange(5):
            case 0:
                data[at] ^= 1 << chance.randrange(8)
            case 1:
                data[at : at + length] = chance.randbytes(len(data[at : at + length]))
            case 2:
                data[at : at + length] = bytes(len(data[at : at + length]))
            case 3:
                other = chance.randrange(len(data))
                data[at : at + length] = data[other : other + length]
            case 4:
                del data[at:]
                data = data or bytearray(1)
    for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
        path.with_name(name).unlink(missing_ok=True)
    path.write_bytes(data)


def damage_indexes(count: int, seed: str, folder: Path) -> Outcome:
    """Alter ``count`` files."""
    path = folder / "index.sqlite"
    right = filled(path)
    whole = path.read_bytes()
    chance = random.Random(seed)
    violations, refused = [], 0
    logging.getLogger("ckpt_lib").setLevel(logging.CRITICAL)
    for _ in range(count):
        one = chance.getrandbits(32)
        mutate(path, whole, one)
        database = IndexDatabase(make_url(f"sqlite:///{path}"), is_ours=True)
        try:
            found = ask(database)
            refused += found != right
            if not found.is_right_or_nothing(right):
                violations.append(f"seed {one}: a wrong answer")
            elif found != right and not (note(database, _EXPERIMENT, list(right.manifests)) and ask(database) == right):
                violations.append(f"seed {one}: not healed")
        except Exception as error:
            violations.append(f"seed {one}: {error!r}")
        finally:
            database.close()
    return Outcome(count, violations, f"{refused} were noticed, the others altered nothing that is asked for")


ROWS = [
    Row(
        number=45,
        fault="bytes of the index altered, lost or doubled",
        must_hold="each answer is right or there is none; the index is built anew",
        unit="files",
        count=10_000,
        sample=20,
        run=damage_indexes,
    )
]
