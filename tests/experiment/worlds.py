"""What is explored: actors that call the real functions, what they find at first, and what must always hold."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import xxhash

from ckpt_lib.core.facts import CheckpointFacts
from ckpt_lib.core.manifest import Claim, FileEntry, Manifest
from ckpt_lib.core.names import CheckpointId
from ckpt_lib.core.owners import Owner
from ckpt_lib.experiment import commit, copies, deletion, edits
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.files import replace_file
from ckpt_lib.experiment.layout import key_name
from ckpt_lib.experiment.pointers import Pointer
from ckpt_lib.experiment.sweep import sweep
from tests.experiment.explorer import MOMENT, Actor, World, records

U, W, Z = ("a" * 32, "b" * 32, "c" * 32)
X, Y, V = (f"checkpoint_epoch_000{number}_step_000000_20231201_143022" for number in (1, 2, 3))
REPORT = {"files": ["damaged"]}


# What is there at first


def manifest(checkpoint_id: str = X, uid: str = U, **facts: Any) -> Manifest:
    epoch = CheckpointId.parse(checkpoint_id).epoch
    data = uid.encode()
    file = FileEntry(
        name=f"{checkpoint_id}.pt",
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        chunk_size_bytes=8 * 2**20,
        chunk_xxh3_128=(xxhash.xxh3_128_hexdigest(data),),
    )
    fields: dict[str, Any] = {
        "checkpoint_id": checkpoint_id,
        "uid": uid,
        "claim": "f" * 16,
        "revision": "f" * 16,
        "timestamp": MOMENT,
        "epoch": epoch,
        "step": 0,
        "model_name": "Net",
        "experiment_name": "e",
        "sequence": epoch,
        "format": "torch",
        "files": (file,),
    }
    return Manifest(**(fields | facts))


def stored(*manifests: Manifest, folder: str = "e") -> dict[str, bytes]:
    """Return the files of checkpoints."""
    content = {f"{folder}/{item.checkpoint_id}.json": item.to_bytes() for item in manifests}
    return content | {f"{folder}/{item.files[0].name}": item.uid.encode() for item in manifests}


def deleted(checkpoint_id: str = X, uid: str = U, **facts: Any) -> Manifest:
    return manifest(checkpoint_id, uid, state="deleted", deleted_at=MOMENT, **facts)


# Actors


def save(uid: str, *, epoch: int = 1, key: str | None = None, files: int = 1) -> Actor:
    def write(payload: commit.Payload) -> None:
        for number in range(files):
            with payload.open("" if files == 1 else f"part{number}") as stream:
                stream.write(uid.encode())

    def actor(experiment: Experiment) -> Any:
        facts = CheckpointFacts(epoch, 0, "Net", "e", uid=uid, timestamp=MOMENT, idempotency_key=key)
        made = commit.save(experiment, facts, write, format_name="torch", suffix=".pt" if files == 1 else "/")
        return ("saved" if made.uid == uid else "earlier"), made.checkpoint_id, made.uid

    return actor


def copy(uid: str = U, *, asked: bool = True, new_id: bool = False, checkpoint_id: str = X) -> Actor:
    """Copy from a folder beside this one, which nobody changes unless a world says so."""

    def actor(experiment: Experiment) -> Any:
        source = Experiment(experiment.store, "source", "e")
        made = copies.copy(source, manifest(checkpoint_id, uid), experiment, asked=asked, new_id=new_id)
        return made and ("saved", made.checkpoint_id, made.uid)

    return actor


def sweeper(experiment: Experiment) -> Any:
    sweep(experiment)
    return ("swept",)


def purge(experiment: Experiment) -> Any:
    return "purged", len(deletion.purge(experiment, grace_seconds=0))


def delete(checkpoint_id: str = X, *relied_on: str) -> Actor:
    def actor(experiment: Experiment) -> Any:
        outcome = deletion.delete_all(experiment, [checkpoint_id], relied_on=relied_on)
        return "deleted", len(outcome.deleted)

    return actor


def undelete(checkpoint_id: str = X) -> Actor:
    return lambda experiment: ("back", deletion.undelete(experiment, checkpoint_id).checkpoint_id)


def edit(checkpoint_id: str = X, **facts: Any) -> Actor:
    def actor(experiment: Experiment) -> Any:
        edits.edit(experiment, checkpoint_id, lambda item: item.changed(**facts))
        return ("edited",)

    return actor


def tag(name: str) -> Actor:
    def actor(experiment: Experiment) -> Any:
        edits.edit(experiment, X, lambda item: item.changed(tags=tuple(sorted({*item.tags, name}))))
        return "edited", name

    return actor


def quarantine(checkpoint_id: str) -> Actor:
    def actor(experiment: Experiment) -> Any:
        found = experiment.read(checkpoint_id)
        if not (isinstance(found.record, Manifest) and found.record.is_visible):
            return None
        return "set aside", edits.quarantine(experiment, found, REPORT) is not None

    return actor


def read(experiment: Experiment) -> Any:
    """Read a checkpoint as a load does: a file that is gone means that its checkpoint is."""
    try:
        found = experiment.get(X)
        with experiment.store.open_read(experiment.key(found.files[0].name)) as reader:
            return ("whole",) if reader.read_at(0, 99) == found.uid.encode() else ("CORRUPT",)
    except FileNotFoundError:
        return ("not found",)


def repair(experiment: Experiment) -> Any:
    found = experiment.get(X)
    return "repaired", replace_file(experiment, found, found.files[0], [found.uid.encode()])


def then(*actors: Actor) -> Actor:
    def actor(experiment: Experiment) -> Any:
        return [one(experiment) for one in actors][-1]

    return actor


# Promises


def live(content: dict[str, bytes], folder: str = "e/") -> dict[str, Manifest]:
    found = records(content, folder).items()
    return {checkpoint_id: item for checkpoint_id, item in found if isinstance(item, Manifest) and item.is_visible}


def whole(content: dict[str, bytes], results: Sequence[Any]) -> str | None:
    """Check that what is live has its files, what was acknowledged is live, and what was refused is not."""
    seen = live(content)
    for checkpoint_id, item in seen.items():
        for file in item.files:
            if content.get(f"e/{file.name}") != item.uid.encode():
                return f"{checkpoint_id} is live, {file.name} is {content.get(f'e/{file.name}')!r}"
    if ("CORRUPT",) in results:
        return "a reader was told that it is corrupt"
    for number, result in enumerate(results):
        if result and result[0] == "error" and any(item.claim[:4] == f"{number:04x}" for item in seen.values()):
            return "refused, but live"
    return None


def acknowledged(content: dict[str, bytes], results: Sequence[Any]) -> str | None:
    """Check :func:`whole`, and that each checkpoint is there that was acknowledged, and has an id of its own."""
    seen = live(content)
    given: dict[str, str] = {}
    for result in results:
        if result and result[0] == "saved":
            _, checkpoint_id, uid = result
            if checkpoint_id not in seen or seen[checkpoint_id].uid != uid:
                return f"{checkpoint_id} was acknowledged and is not there"
            if given.setdefault(checkpoint_id, uid) != uid:
                return f"{checkpoint_id} was given twice"
    return whole(content, results)


def something_live(content: dict[str, bytes], results: Sequence[Any]) -> str | None:
    return whole(content, results) or (None if live(content) else "nothing is live")


def something_left(content: dict[str, bytes], results: Sequence[Any]) -> str | None:
    states = [item.state for item in records(content).values()]
    return whole(content, results) or (None if {"live", "leaving", "deleted"} & {*states} else "all are gone for good")


def something_valid(content: dict[str, bytes], _: Sequence[Any]) -> str | None:
    return None if any(item.quarantined is None for item in live(content).values()) else "nothing valid is live"


def none_forgotten(content: dict[str, bytes], results: Sequence[Any]) -> str | None:
    """Check that the sweep knows each payload file: its id has a record.

    A save that slept for a day writes its file after its key has ended. If it then dies, or its deletion is not done,
    the file stays without a record, and the sweep reports it as unnamed.
    """
    known = records(content)
    files = [key.removeprefix("e/") for key in content if key.startswith("e/checkpoint") and not key.endswith(".json")]
    lost = [name for name in files if name.partition("/")[0].partition(".")[0] not in known]
    return f"no record of {lost}" if lost and results[0] != "crashed" else None


def once(content: dict[str, bytes], results: Sequence[Any]) -> str | None:
    """Check that one key, or one uid, has one checkpoint, and that it is the answer."""
    seen = live(content)
    if len(seen) > 1:
        return "two for one"
    for result in results:
        if result and result[0] in ("saved", "earlier") and result[2] not in {item.uid for item in seen.values()}:
            return f"the answer {result} is not live"
    return whole(content, results)


def pin_holds(content: dict[str, bytes], results: Sequence[Any]) -> str | None:
    pinned = records(content).get(X)
    if results[0] != ("edited",) or (isinstance(pinned, Manifest) and pinned.is_visible and pinned.pinned):
        return None
    return "it was pinned, and is not there pinned"


def tags_hold(content: dict[str, bytes], results: Sequence[Any]) -> str | None:
    wanted = {result[1] for result in results if result and result[0] == "edited"}
    return None if wanted <= {*live(content)[X].tags} else "an edit is lost"


def both_done(content: dict[str, bytes], results: Sequence[Any]) -> str | None:
    """Check that two who want the same both have it, whoever of them was killed: one waits for the other."""
    lacking = [result for result in results if result != "crashed" and result[0] != "saved"]
    return f"one was refused: {lacking}" if lacking else acknowledged(content, results)


def stays_away(content: dict[str, bytes], results: Sequence[Any]) -> str | None:
    return "purged at home, and came back" if results[1] == ("purged", 1) and live(content) else None


PAIR = stored(manifest(X), manifest(Y, W))
SOURCE = stored(manifest(X), folder="source")
DEAD = Owner(host="h", system="s", pid=99, started="1")
UNFINISHED = {
    f"e/{X}.json": Claim(
        checkpoint_id=X, uid=Z, claim="f" * 16, revision="f" * 16, state="saving", owner=DEAD, files=(f"{X}.pt",)
    ).to_bytes(),
    f"e/{X}.pt": Z.encode(),
}
PURGING = stored(manifest(X, state="purging"), manifest(Y, W))
KEY = {f"e/{key_name('k')}": Pointer(checkpoint_id=X, uid=U, revision="f" * 16).model_dump_json().encode()}
DELETED = stored(deleted(), manifest(Y, W))


def named(**worlds: Callable[[], World]) -> dict[str, Callable[[], World]]:
    return {name.replace("_", " "): world for name, world in worlds.items()}


def _world(*actors: tuple[str, Actor], **options: Any) -> Callable[[], World]:
    return lambda: World(actors, **options)


WORLDS = named(
    a_save_and_a_late_sweep=_world(("save", save(U)), ("sweep", sweeper), always=acknowledged),
    a_sweep_and_a_save_after_another_sweep=_world(
        ("sweep", sweeper), ("sweep and save", then(sweeper, save(U))), content=UNFINISHED, always=acknowledged
    ),
    a_purge_and_a_restore_after_another_purge=_world(
        ("purge", purge), ("purge and restore", then(purge, copy())), content=PURGING | SOURCE, always=acknowledged
    ),
    a_purge_and_a_restore=_world(
        ("purge", purge), ("restore", copy()), content=PURGING | SOURCE, always=acknowledged, crash=(0,)
    ),
    a_save_and_two_sweeps=_world(
        ("save", save(U)), ("sweep", sweeper), ("sweep2", sweeper), always=acknowledged, crash=(0, 1, 2), lost=1
    ),
    a_save_and_a_sweep=_world(
        ("save", save(U)), ("sweep", sweeper), always=acknowledged, final=none_forgotten, crash=(0, 1)
    ),
    a_save_of_two_files_a_read_and_a_sweep=_world(
        ("save", save(U, files=2)), ("read", read), ("sweep", sweeper), always=acknowledged, crash=(0,)
    ),
    two_saves_of_one_second_and_a_sweep=_world(
        ("save", save(U)), ("save2", save(W)), ("sweep", sweeper), always=acknowledged, crash=(0, 2), lost=1
    ),
    two_purges_and_a_restore=_world(
        ("purge", purge),
        ("purge2", purge),
        ("restore", copy()),
        content=DELETED | SOURCE,
        always=acknowledged,
        crash=(0,),
    ),
    two_restores_and_a_sweep=_world(
        ("restore", copy()), ("restore2", copy()), ("sweep", sweeper), content=SOURCE, always=acknowledged, crash=(0,)
    ),
    a_pin_a_deletion_and_a_purge=_world(
        ("pin", edit(pinned=True)),
        ("delete", delete()),
        ("purge", purge),
        content=PAIR,
        always=whole,
        final=pin_holds,
        crash=(1, 2),
        lost=1,
        days=0,
    ),
    a_deletion_an_undeletion_and_a_purge=_world(
        ("delete", delete()),
        ("undelete", undelete()),
        ("purge", purge),
        content=PAIR,
        always=whole,
        crash=(0, 1, 2),
        days=0,
    ),
    two_edits=_world(
        ("edit", tag("a")), ("edit2", tag("b")), content=PAIR, always=whole, final=tags_hold, crash=(0,), lost=1, days=0
    ),
    two_cleanups=_world(
        ("clean", delete(X, Y)), ("clean2", delete(Y, X)), content=PAIR, always=something_live, crash=(0, 1), lost=1
    ),
    three_cleanups=_world(
        ("clean", delete(X, Y)),
        ("clean2", delete(Y, V)),
        ("clean3", delete(V, X)),
        content=stored(manifest(X), manifest(Y, W), manifest(V, Z)),
        always=something_live,
        crash=(0, 1, 2),
        days=0,
    ),
    two_cleanups_and_a_purge=_world(
        ("clean", delete(X, Y)),
        ("clean2", delete(Y, X)),
        ("purge", purge),
        content=PAIR,
        always=something_left,
        crash=(0, 1),
        days=0,
    ),
    two_purges_and_a_deletion_of_the_other=_world(
        ("purge", purge), ("purge2", purge), ("delete", delete(Y)), content=DELETED, always=whole, crash=(0,), days=0
    ),
    a_purge_while_nothing_is_live=_world(
        ("purge", purge), ("purge2", purge), content=stored(deleted()), always=something_left, crash=(0,), days=0
    ),
    a_read_a_purge_and_a_restore_of_another=_world(
        ("read", read),
        ("delete and purge", then(delete(), purge)),
        ("restore", copy(Z)),
        content=PAIR | stored(manifest(X, Z), folder="source"),
        always=whole,
        crash=(1,),
    ),
    a_repair_a_purge_and_a_restore=_world(
        ("repair", repair),
        ("delete and purge", then(delete(), purge)),
        ("restore", copy()),
        content=PAIR | SOURCE,
        always=whole,
        crash=(1,),
    ),
    a_repair_and_a_purge=_world(
        ("repair", repair),
        ("delete and purge", then(delete(), purge)),
        content=PAIR,
        always=whole,
        final=none_forgotten,
        days=0,
    ),
    two_saves_of_one_key_and_a_sweep=_world(
        ("save", save(U, key="k")),
        ("save2", save(W, epoch=2, key="k")),
        ("sweep", sweeper),
        always=once,
        crash=(0, 1),
        days=1,
    ),
    two_saves_of_one_key=_world(
        ("save", save(U, key="k")), ("save2", save(W, epoch=2, key="k")), always=once, crash=(0,), lost=1, days=0
    ),
    a_save_with_the_key_of_a_deleted_one=_world(
        ("save", save(W, epoch=2, key="k")),
        ("undelete", undelete()),
        ("purge", purge),
        content=stored(deleted(idempotency_key="k")) | KEY,
        always=once,
        crash=(0, 2),
        days=0,
    ),
    a_purge_and_two_saves_of_its_key=_world(
        ("purge", purge),
        ("save", save(W, epoch=2, key="k")),
        ("save2", save(Z, epoch=3, key="k")),
        content=stored(
            deleted(idempotency_key="k"), manifest("checkpoint_epoch_0009_step_000000_20231201_143022", "d" * 32)
        )
        | KEY,
        always=lambda content, results: "two for one key" if len(live(content)) > 2 else whole(content, results),
        days=0,
    ),
    two_that_come_home_and_a_purge=_world(
        ("home", copy(asked=False, new_id=True)),
        ("home2", copy(asked=False, new_id=True)),
        ("purge", purge),
        content=stored(deleted(X, W), manifest(Y, Z)) | SOURCE,
        always=lambda content, results: (
            "one uid live twice"
            if sum(item.uid == U for item in live(content).values()) > 1
            else whole(content, results)
        ),
        crash=(0,),
        days=0,
    ),
    one_that_comes_home_and_is_purged=_world(
        ("home", copy(asked=False)),
        ("delete and purge", then(delete(), purge)),
        ("home again", copy(asked=False)),
        content=SOURCE | stored(manifest(Y, W)),
        always=whole,
        final=lambda content, results: (
            "purged at home, and came back" if results[1] == ("purged", 1) and X in live(content) else None
        ),
        crash=(0,),
    ),
    a_cleanup_and_a_quarantine=_world(
        ("clean", delete(X, Y)),
        ("quarantine", quarantine(Y)),
        content=PAIR,
        always=whole,
        final=something_valid,
        crash=(0,),
        days=0,
    ),
    a_pin_and_two_cleanups=_world(
        ("pin", edit(pinned=True)),
        ("clean", delete(X, Y)),
        ("clean2", delete(Y, X)),
        content=PAIR,
        always=something_live,
        final=pin_holds,
        crash=(1, 2),
        days=0,
    ),
    a_backup_a_purge_at_home_and_a_sweep=_world(
        ("backup", copy()),
        ("delete and purge", lambda e: then(delete(), purge)(Experiment(e.store, "source", "e"))),
        ("sweep", sweeper),
        content=stored(manifest(X), manifest(Y, W), folder="source"),
        always=acknowledged,
        crash=(0, 1),
    ),
    two_backups_at_once=_world(
        ("backup", copy()),
        ("backup2", copy()),
        content=SOURCE,
        always=acknowledged,
        final=both_done,
        crash=(0,),
        days=0,
    ),
)
