"""The list of mutants is of this code: each safeguard that it takes out is there, and so is the test that misses it."""

from __future__ import annotations

import pytest

from torture.mutants import Mutant, load
from torture.runner import ROOT

MUTANTS = load()


@pytest.mark.parametrize("mutant", MUTANTS, ids=[f"{mutant.path}: {mutant.removed}" for mutant in MUTANTS])
def test_each_mutant_is_of_this_code(mutant: Mutant) -> None:
    """Its text occurs just once in its file, is not what replaces it, and the files of its tests exist."""
    code = (ROOT / mutant.path).read_text(encoding="utf-8")
    assert code.count(mutant.original) == 1
    assert mutant.replacement != mutant.original
    for test in mutant.tests:
        path = test.partition("::")[0]
        assert (ROOT / path).is_file()


def test_there_are_many() -> None:
    """Every barrier, rename, lease check and verification by itself."""
    assert len(MUTANTS) > 150
