"""The protocol, explored: the real functions in every interleaving, with crashes, lost answers and passing days.

``make test`` looks at the first states of each world, in an order that finds each mistake below among them;
``make torture`` looks at many more. ``CKPT_EXPLORER_STATES=10000000`` looks at all of them.
"""

from __future__ import annotations

import inspect
import os
import textwrap
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from ckpt_lib.experiment import claims, commit, copies, deletion, edits, keys, sweep
from tests.experiment.worlds import WORLDS

MAX_STATES = int(os.environ.get("CKPT_EXPLORER_STATES", "6000"))  # read before tests clear the variables of CKPT_*
MUTANT_STATES = 20_000


@pytest.mark.parametrize("name", WORLDS)
def test_whatever_happens_the_promises_hold(name: str) -> None:
    """What is acknowledged is there and whole, nothing live is lost, no id is given twice, no file is forgotten."""
    verdict = WORLDS[name]().run(max_states=MAX_STATES)
    assert not verdict.violation, f"{verdict.violation}\n{verdict.trace}"
    assert verdict.states > 100


def test_two_steps_of_one_read_are_as_good_as_one() -> None:
    """A version that is older than the text beside it only leads to refusals."""
    world = WORLDS["two cleanups"]()
    world.split_reads = True
    verdict = world.run(max_states=MAX_STATES)
    assert not verdict.violation, f"{verdict.violation}\n{verdict.trace}"


def mutate(monkeypatch: pytest.MonkeyPatch, module: ModuleType, function: Any, original: str, changed: str) -> None:
    """Put a changed function in the place of the one whose source says ``original`` just once."""
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(original) == 1
    namespace = dict(vars(module))
    exec(
        compile("from __future__ import annotations\n" + source.replace(original, changed), "mutant", "exec"), namespace
    )
    owner_name, _, name = function.__qualname__.rpartition(".")
    monkeypatch.setattr(getattr(module, owner_name) if owner_name else module, name, namespace[name])
    for user in (claims, commit, copies, deletion, edits, keys, sweep):
        if getattr(user, name, None) is function:
            monkeypatch.setattr(user, name, namespace[name])


MUTANTS: dict[str, tuple[ModuleType, Callable[[], Any], str, str, str]] = {
    "no leaving": (
        deletion,
        lambda: deletion._leave,
        'rewrite_all(experiment, victims, state="leaving")',
        "victims",
        "two cleanups",
    ),
    "no leaving before a deletion for good": (
        deletion,
        lambda: deletion._leave,
        'rewrite_all(experiment, victims, state="leaving")',
        "victims",
        "two cleanups for good",
    ),
    "fixed payload names": (
        claims,
        lambda: claims.claim_over,
        "name = plain if has_plain_name else payload_name(checkpoint_id, suffix, token)",
        "name = plain",
        "a purge and a restore after another purge",
    ),
    "keys deleted unconditionally": (
        claims,
        lambda: claims.end,
        "Delete(experiment.key(manifest_name(record.checkpoint_id)), found.version)",
        "Delete(experiment.key(manifest_name(record.checkpoint_id)))",
        "a purge and a restore",
    ),
    "a purge that looks too late": (
        deletion,
        lambda: deletion.purge,
        """        if not asked and (relied_on is None or not _all_valid(experiment, [relied_on.checkpoint_id])):
            relied_on = keep_one_valid(experiment, is_sound)
        if asked or relied_on:
            moved = rewrite_all(experiment, found, state="purging")
""",
        """        moved = rewrite_all(experiment, found, state="purging")
        if not keep_one_valid(experiment):
            rewrite_all(experiment, [item for item in moved if isinstance(item, Found)], state="live")
        else:
""",
        "a purge while nothing is live",
    ),
    "no quarantine looks what is left": (
        edits,
        lambda: edits.quarantine,
        "    keep_one_valid(experiment, is_sound)\n",
        "",
        "a cleanup and a quarantine",
    ),
    "files that go before their claim": (
        claims,
        lambda: claims.abandon,
        """        if claim.state == "saving":
            found""",
        """        remove_files(experiment, claim.files)
        if claim.state == "saving":
            found""",
        "a save and a late sweep",
    ),
    "a full store's claim that goes before its files": (
        claims,
        lambda: claims.give_up,
        """            remove_files(held.experiment, held.claim.files)
            name = manifest_name(held.checkpoint_id)
            if is_mine and held.has_plain_name and held.experiment.delete_key(name, found.version):
                return""",
        """            name = manifest_name(held.checkpoint_id)
            held.experiment.delete_key(name, found.version)
            remove_files(held.experiment, held.claim.files)
            return""",
        "a save on a full store and another of that second",
    ),
    "a full store's claim that leaves no record where others may have seen one end": (
        claims,
        lambda: claims.give_up,
        "if is_mine and held.has_plain_name and ",
        "if is_mine and ",
        "a purge and a restore on a full store after another purge",
    ),
    "keys that end at once": (
        claims,
        lambda: claims._is_old,
        "return now_seconds - CheckpointId.parse(checkpoint_id).timestamp.timestamp() >= GONE_FOR.total_seconds()",
        "return True",
        "a sweep and a save after another sweep",
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_each_safeguard_is_needed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, some world goes wrong: the exploration sees what the safeguard is for."""
    module, function, original, changed, world = MUTANTS[name]
    mutate(monkeypatch, module, function(), original, changed)
    assert WORLDS[world]().run(max_states=MUTANT_STATES).violation
