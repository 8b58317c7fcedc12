"""Payloads in the place of others, explored: who replaces one, goes back to it and removes it meets everybody else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ckpt_lib.core.manifest import Manifest, ObsoletePayload
from ckpt_lib.experiment import commit, replacement
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.replacement import HeldNext
from ckpt_lib.experiment.sweep import is_leftover
from tests.experiment.actors import delete, edit, purge, read, repair, sweeper, then, undelete
from tests.experiment.contents import DELETED, PAIR, U, W, X, Y, manifest, stored
from tests.experiment.explorer import MOMENT, Actor, World, records
from tests.experiment.promises import live, pin_holds, whole

THIN = f"{X}.{'e' * 16}.pt"


def replace(*, files: int = 1) -> Actor:
    """Write other files with the same bytes: what they hold is nothing that the protocol looks at."""

    def actor(experiment: Experiment) -> Any:
        source = experiment.get(X)

        def write(held: HeldNext) -> Any:
            payload = commit.Payload(held)
            for number in range(files):
                with payload.open("" if files == 1 else f"part{number}") as stream:
                    stream.write(source.uid.encode())
            return payload.files

        replaced = replacement.replace_payload(experiment, source, ".pt" if files == 1 else "/", write, thinned=None)
        return "replaced", replaced.files[0].name

    return actor


def go_back(experiment: Experiment) -> Any:
    found = experiment.get(X)
    if not found.obsolete or found.obsolete[-1].removing:
        return None
    return "back", replacement.switch_back(experiment, X, found.obsolete[-1]).files[0].name


def remove(experiment: Experiment) -> Any:
    return "removed", len(replacement.remove_obsolete(experiment, grace_seconds=0))


def all_whole(content: dict[str, bytes], results: Sequence[Any]) -> str | None:
    """Check what readers see, and that what can be gone back to is there."""
    for item in live(content).values():
        for earlier in item.obsolete:
            lost = [file.name for file in earlier.files if content.get(f"e/{file.name}") != item.uid.encode()]
            if lost and not earlier.removing:
                return f"{lost} could be gone back to, and is not there"
    return whole(content, results)


def nothing_lost(content: dict[str, bytes], results: Sequence[Any]) -> str | None:
    """Check that the checkpoint is there and whole, and each file is named by its record or known to the sweep."""
    return all_whole(content, results) or ("it is gone" if X not in live(content) else known(content, results))


def known(content: dict[str, bytes], _: Sequence[Any]) -> str | None:
    found = records(content)
    names = [key.removeprefix("e/") for key in content if key.startswith(f"e/{X}") and not key.endswith(".json")]
    if X not in found:
        return None
    record = found[X]
    named = record.all_names if isinstance(record, Manifest) else record.files
    lost = [
        name
        for name in names
        if not any(name == item or (item.endswith("/") and name.startswith(item)) for item in named)
        and not is_leftover(record, name)
    ]
    return f"nobody knows {lost}" if lost else None


def replaced(**facts: Any) -> dict[str, bytes]:
    """Return the files of a checkpoint whose payload has taken another's place."""
    old = manifest()
    new = old.files[0].model_copy(update={"name": THIN})
    earlier = ObsoletePayload(files=old.files, since=MOMENT)
    there = manifest(files=(new,), obsolete=(earlier,), **facts)
    return stored(there, manifest(Y, W)) | {f"e/{X}.pt": U.encode()}


def _world(*actors: tuple[str, Actor], **options: Any) -> Callable[[], World]:
    return lambda: World(actors, **options)


WORLDS: dict[str, Callable[[], World]] = {
    "two replacements": _world(
        ("replace", replace()),
        ("replace2", replace()),
        content=PAIR,
        always=nothing_lost,
        crash=(0,),
        lost=1,
    ),
    "a replacement and a late sweep": _world(
        ("replace", replace()), ("sweep", sweeper), content=PAIR, always=nothing_lost, crash=(0, 1), lost=1
    ),
    "a replacement by two files and two sweeps": _world(
        ("replace", replace(files=2)),
        ("sweep", sweeper),
        ("sweep2", sweeper),
        content=PAIR,
        always=nothing_lost,
        crash=(0, 1),
        days=0,  # what is written into a folder a day late, by a process that is killed then, is known to nobody
    ),
    "a replacement on a full store and a sweep": _world(
        ("replace", replace()), ("sweep", sweeper), content=PAIR, always=nothing_lost, full=(0,), crash=(0,), lost=1
    ),
    "a replacement a deletion and a purge": _world(
        ("replace", replace()),
        ("delete and purge", then(delete(), purge)),
        content=PAIR,
        always=all_whole,
        final=known,
        crash=(0, 1),
    ),
    "a replacement a deletion and an undeletion": _world(
        ("replace", replace()),
        ("delete", delete()),
        ("undelete", undelete()),
        content=PAIR,
        always=all_whole,
        final=known,
        crash=(0,),
        days=0,
    ),
    "a replacement a removal and a pin": _world(
        ("replace and remove", then(replace(), remove)),
        ("pin", edit(pinned=True)),
        ("read", read),
        content=PAIR,
        always=nothing_lost,
        final=lambda content, results: pin_holds(content, results[1:]),
        crash=(0,),
        days=0,
    ),
    "a way back and two removals": _world(
        ("back", go_back),
        ("remove", remove),
        ("remove2", remove),
        content=replaced(),
        always=nothing_lost,
        crash=(0, 1),
        lost=1,
        days=0,
    ),
    "a way back and a replacement": _world(
        ("back", go_back), ("replace", replace()), content=replaced(), always=nothing_lost, crash=(0, 1), lost=1, days=0
    ),
    "a repair a replacement and a removal": _world(
        ("repair", repair),
        ("replace and remove", then(replace(), remove)),
        content=PAIR,
        always=nothing_lost,
        crash=(1,),
        days=0,
    ),
    "a removal and a purge": _world(
        ("remove", remove),
        ("delete and purge", then(delete(), purge)),
        content=replaced(),
        always=all_whole,
        final=known,
        crash=(0, 1),
    ),
    "a folder that is replaced deleted and purged": _world(
        ("replace, delete and purge", then(replace(files=2), replace(files=2), delete(), purge)),
        ("sweep", sweeper),
        content=PAIR,
        always=all_whole,
        final=known,
        crash=(0, 1),
        days=0,  # what is written into a folder a day late stays there, as that of a save does
    ),
    "a way back and a removal": _world(
        ("back", go_back), ("remove", remove), content=replaced(), always=nothing_lost, crash=(0, 1), lost=1
    ),
    "a replacement of what is deleted": _world(
        ("replace", replace()), ("undelete", undelete()), content=DELETED, always=all_whole, crash=(0,), days=0
    ),
}
