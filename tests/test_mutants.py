"""The list of mutants is of this code, and what runs it tells those that are caught from those that are not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tests.torture import mutants
from tests.torture.mutants import BEGIN, END, PAGE, Mutant, UnsoundListError, check, load, main, run
from tests.torture.processes import Child
from tests.torture.runner import ROOT

MUTANTS = load()
QUICK = next(mutant for mutant in MUTANTS if mutant.removed == "refusing the manifest of a newer version")


def test_each_is_of_this_code() -> None:
    """Its text is there, just once; it changes something, and has a name of its own."""
    check(MUTANTS, ROOT)
    assert all(mutant.original != mutant.replacement for mutant in MUTANTS)
    assert len({mutant.removed for mutant in MUTANTS}) == len(MUTANTS)


def test_each_leaves_code_that_can_be_compiled() -> None:
    """Or else any test would fail."""
    for mutant in MUTANTS:
        code = (ROOT / mutant.path).read_text(encoding="utf-8").replace(mutant.original, mutant.replacement)
        compile(code, mutant.removed, "exec")


def test_the_tests_of_each_are_there() -> None:
    """Each by its name: a test that is gone would not fail."""
    tests = sorted({test for mutant in MUTANTS for test in mutant.tests})
    assert all("::" in test for test in tests)
    options = ["--collect-only", "-qq", "-p", "no:cacheprovider", "-p", "no:xdist", f"--rootdir={ROOT}"]
    with Child(pytest.main, [*options, *(str(ROOT / test) for test in tests)]) as child:
        assert child.result() == pytest.ExitCode.OK


def test_the_page_lists_all() -> None:
    """As the last run wrote it."""
    text = PAGE.read_text(encoding="utf-8")
    assert text.partition(BEGIN)[2].partition(END)[0] == f"\n\n{mutants.section(MUTANTS)}\n"


def test_one_that_is_caught_and_one_that_is_not() -> None:
    """Told apart by a real run of their tests; what a mutant changes is undone for the next one."""
    harmless = replace(QUICK, removed="nothing", replacement=QUICK.original)
    broken = replace(QUICK, removed="a whole word", replacement="        if\n")
    results = run([QUICK, harmless, broken, replace(QUICK, removed="the same")], Console(quiet=True))
    assert [found.verdict for found in results] == ["caught", "SURVIVED", "BROKEN", "caught"]
    assert QUICK.tests[0].rpartition("::")[2] in results[0].output


def test_one_whose_tests_do_not_end_is_not_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are stopped, and nobody knows what they would have said."""
    monkeypatch.setattr(mutants, "TIMEOUT_SECONDS", 0.01)
    (result,) = run([QUICK], Console(quiet=True))
    assert result.verdict == "HUNG"


@pytest.mark.parametrize(
    ("text", "told"), [("no such text", "occurs 0 times"), ("def ", "times in ckpt_lib/core/manifest")]
)
def test_a_list_that_is_old_is_refused(text: str, told: str) -> None:
    """Before anything is run."""
    with pytest.raises(UnsoundListError, match=told):
        run([replace(QUICK, original=text)], Console(quiet=True))


def test_a_test_that_fails_anyway_is_no_proof() -> None:
    """Nor one that is not there."""
    absent = replace(QUICK, tests=("tests/core/test_metadata.py::test_that_was_renamed",))
    with pytest.raises(UnsoundListError, match="without any mutant"):
        run([absent], Console(quiet=True))


_WRITTEN = ("removed", "original", "replacement", "tests")


def _list(path: Path, *found: Mutant) -> Path:
    lines = [
        f"[[{json.dumps(mutant.path)}]]\n"
        + "".join(f"{name} = {json.dumps(getattr(mutant, name))}\n" for name in _WRITTEN)
        for mutant in found
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_a_run_of_all_is_written_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Between the markers of the page, if every one was caught; a part of them is only printed."""
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    second = replace(QUICK, removed="another")
    both = _list(tmp_path / "both.toml", QUICK, second)
    assert main(["--only", "another"], list_path=both, page=page) == 0
    assert "old" in page.read_text(encoding="utf-8")
    assert main([], list_path=both, page=page) == 0
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "2 mutants, each caught" in text
    assert f"`{QUICK.path}`" in text
    survivor = _list(tmp_path / "one.toml", replace(QUICK, removed="nothing", replacement=QUICK.original))
    assert main([], list_path=survivor, page=page) == 1
    assert page.read_text(encoding="utf-8") == text
    assert "SURVIVED: nothing" in capsys.readouterr().out


def test_what_cannot_be_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A name that no mutant has, and a list that does not fit."""
    with pytest.raises(SystemExit, match="no mutant"):
        main(["--only", "no such thing"])
    old = _list(tmp_path / "old.toml", replace(QUICK, original="no such text"))
    assert main([], list_path=old, page=tmp_path / "page.md") == 1
    assert "occurs 0 times" in capsys.readouterr().out
