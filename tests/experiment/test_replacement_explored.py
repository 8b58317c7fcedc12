"""Payloads in the place of others, explored as :mod:`tests.experiment.test_explorer` explores the rest."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from ckpt_lib.experiment import deletion, files, replacement
from tests.experiment.replacements import WORLDS
from tests.experiment.test_explorer import MAX_STATES, MUTANT_STATES, mutate


@pytest.mark.parametrize("name", WORLDS)
def test_whatever_happens_the_promises_hold(name: str) -> None:
    """The checkpoint has one whole payload, what can be gone back to is there, and no file is forgotten."""
    verdict = WORLDS[name]().run(max_states=MAX_STATES)
    assert not verdict.violation, f"{verdict.violation}\n{verdict.trace}"
    assert verdict.states > 20


MUTANTS: dict[str, tuple[ModuleType, Callable[[], Any], str, str, str]] = {
    "a removal that is not announced": (
        replacement,
        lambda: replacement._remove_of,
        "marked = rewrite(experiment, found, obsolete=(*others, *going))",
        "marked = found",
        "a way back and a removal",
    ),
    "a way back to what is being removed": (
        replacement,
        lambda: replacement.switch_back,
        "if earlier not in manifest.obsolete:",
        "if False:",
        "a way back and a removal",
    ),
    "files that go before what was to come is given up": (
        replacement,
        lambda: replacement._end_next,
        "if not payload.abandoned:",
        "if False:",
        "a replacement and a late sweep",
    ),
    "a switch to what others have given up": (
        replacement,
        lambda: replacement._switch,
        "if not held.is_next_of(manifest):",
        "if False:",
        "a replacement and a late sweep",
    ),
    "a late repair that removes what can be gone back to": (
        files,
        lambda: files._is_still_named,
        "if any(file in item.files and not item.removing for item in record.obsolete):",
        "if False:",
        "a repair a replacement and a removal",
    ),
    "a purge of the present payload alone": (
        deletion,
        lambda: deletion.finish_purge,
        "for name in found.manifest.removable_names]",
        "for name in (file.name for file in found.manifest.files)]",
        "a folder that is replaced deleted and purged",
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_each_safeguard_is_needed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, some world goes wrong: the exploration sees what the safeguard is for."""
    module, function, original, changed, world = MUTANTS[name]
    mutate(monkeypatch, module, function(), original, changed)
    assert WORLDS[world]().run(max_states=MUTANT_STATES).violation
