"""What is explored: which actors meet, what they find at first, and what must always hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ckpt_lib.experiment.experiment import Experiment
from tests.experiment.actors import (
    copy,
    delete,
    delete_both,
    edit,
    purge,
    quarantine,
    read,
    repair,
    save,
    sweeper,
    tag,
    then,
    undelete,
    without_room,
)
from tests.experiment.contents import (
    DELETED,
    KEY,
    PAIR,
    PURGING,
    SOURCE,
    UNFINISHED,
    U,
    V,
    W,
    X,
    Y,
    Z,
    deleted,
    manifest,
    stored,
)
from tests.experiment.explorer import Actor, World
from tests.experiment.promises import (
    acknowledged,
    both_done,
    live,
    none_forgotten,
    once,
    pin_holds,
    something_left,
    something_live,
    something_valid,
    tags_hold,
    whole,
)


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
    a_save_on_a_full_store_and_another_of_that_second=_world(
        ("save", save(U)),
        ("save2", save(W)),
        always=acknowledged,
        final=none_forgotten,
        full=(0,),
        crash=(0,),
        lost=1,
        days=0,
    ),
    two_saves_on_a_full_store_and_a_sweep=_world(
        ("save", save(U, files=2)),
        ("save2", save(W, files=2)),
        ("sweep", sweeper),
        always=acknowledged,
        final=none_forgotten,
        full=(0, 1),
        crash=(0, 2),
    ),
    a_save_on_a_full_store_and_its_retry=_world(
        ("save", save(U, key="k")),
        ("retry", save(U, key="k")),
        ("sweep", sweeper),
        always=once,
        full=(0, 1),
        crash=(0,),
        lost=1,
    ),
    a_purge_and_a_restore_on_a_full_store_after_another_purge=_world(
        ("purge", purge),
        ("purge, restore and save", then(purge, without_room(copy()), without_room(save(W)))),
        content=PURGING | SOURCE,
        always=acknowledged,
        full=(1,),
        days=0,
    ),
    two_restores_on_a_full_store_and_a_sweep=_world(
        ("restore", copy()),
        ("restore2", copy()),
        ("sweep", sweeper),
        content=SOURCE,
        always=acknowledged,
        full=(0, 1),
        crash=(0,),
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
    two_cleanups_for_good=_world(
        ("clean", delete(X, Y, for_good=True)),
        ("clean2", delete(Y, X, for_good=True)),
        content=PAIR,
        always=something_live,
        crash=(0, 1),
        lost=1,
    ),
    three_cleanups_for_good=_world(
        ("clean", delete(X, Y, for_good=True)),
        ("clean2", delete(Y, V)),
        ("clean3", delete(V, X, for_good=True)),
        content=stored(manifest(X), manifest(Y, W), manifest(V, Z)),
        always=something_live,
        crash=(0, 1, 2),
        days=0,
    ),
    a_cleanup_of_two_and_one_of_the_third=_world(
        ("clean", delete_both(X, Y, V)),
        ("clean2", delete(V, Y)),
        content=stored(manifest(X), manifest(Y, W), manifest(V, Z)),
        always=something_live,
        crash=(0, 1),
        lost=1,
        days=0,
    ),
    a_cleanup_of_two_for_good_and_one_of_the_third=_world(
        ("clean", delete_both(X, Y, V, for_good=True)),
        ("clean2", delete(V, Y, for_good=True)),
        content=stored(manifest(X), manifest(Y, W), manifest(V, Z)),
        always=something_live,
        crash=(0, 1),
        lost=1,
        days=0,
    ),
    a_pin_a_cleanup_for_good_and_a_purge=_world(
        ("pin", edit(pinned=True)),
        ("clean", delete(X, Y, for_good=True)),
        ("purge", purge),
        content=PAIR,
        always=something_live,
        final=pin_holds,
        crash=(1, 2),
        lost=1,
        days=0,
    ),
    a_cleanup_for_good_and_a_restore=_world(
        ("clean", delete(X, Y, for_good=True)),
        ("restore", copy()),
        ("sweep", sweeper),
        content=PAIR | SOURCE,
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
