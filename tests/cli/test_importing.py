"""``ckpt import`` of what other programs wrote: one, in place, and trees."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import nn

from tests.cli.running import on_posix, run, run_json, run_on_terminal


def _write(path: Path, epoch: int = 3, name: str = "state_dict") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({name: nn.Linear(2, 2).state_dict(), "epoch": epoch}, path)
    return path


def test_a_file_of_another_program_is_imported(tmp_path: Path) -> None:
    """Its description is told; --key says what unusual names are, and is checked."""
    path, options = _write(tmp_path / "model.pt"), ("-s", tmp_path / "store", "-e", "new")
    first = run("import", path, *options)
    assert first.stdout.startswith("imported")
    assert "model.pt" in first.stderr
    assert "'new' is a new experiment" in first.stderr
    again = run_json("import", path, *options)
    assert again["result"] == "already there"
    assert again["left_out"] == []
    odd = _write(tmp_path / "odd.pt", name="zzz")
    assert "=model" in run("import", odd, "--key", "zzz", *options, code=2).stderr
    other = run("import", _write(tmp_path / "other.pt", 3), "-s", tmp_path / "store")
    assert "new has a new latest checkpoint: the next resume goes on from it." in " ".join(other.stderr.split())
    found = run_json("import", odd, "--key", "zzz=model", *options)
    assert found["result"] == "imported"
    assert "odd.pt" in found["description"]


def test_a_first_import_has_to_name_its_experiment(tmp_path: Path) -> None:
    """Where there is no store yet, the hint says what to add, and with that a store is made."""
    path, store = _write(tmp_path / "model.pt"), tmp_path / "store"
    hint = run_json("import", path, "-s", store, code=2)["error"]["hint"]
    assert hint.startswith("Name the experiment that is to take it in, new or not: --experiment NAME.")
    assert not store.exists()
    assert run_json("import", path, "-s", store, "--experiment", "new")["result"] == "imported"


def test_in_place_finds_store_and_experiment(tmp_path: Path) -> None:
    """They are the folders that the file lies in; unpinning and deleting say what goes."""
    path = _write(tmp_path / "runs" / "exp1" / "epoch=3.ckpt")
    store = ("-s", tmp_path / "runs")
    checkpoint_id = run_json("import", path, "--in-place")["checkpoint_id"]
    assert run_json("show", checkpoint_id, *store)["original"] == "epoch=3.ckpt"
    run("validate", "--all", *store)
    assert "epoch=3.ckpt" in run("delete", checkpoint_id, "--yes", *store, code=4).stderr
    assert "epoch=3.ckpt stays" in run("pin", checkpoint_id, "--off", *store).stderr
    assert "epoch=3.ckpt stays" in run("delete", checkpoint_id, "--yes", *store).stderr
    again = run("import", path, "--in-place", code=4)
    assert f"ckpt undelete {checkpoint_id}" in again.stderr
    assert "0 B freed" in run("trash", "--empty", "--yes", *store).stderr
    assert path.exists()
    elsewhere = run("import", path, "--in-place", "-s", tmp_path / "other", "-e", "x", code=2)
    assert "--experiment exp1" in elsewhere.stderr


def test_a_tree_is_imported_and_told(tmp_path: Path) -> None:
    """Each checkpoint has a line; one that is damaged makes the exit code 1 and keeps no other from it."""
    for epoch in (1, 2):
        _write(tmp_path / "old" / f"{epoch}.pt", epoch)
    options = ("-s", tmp_path / "store", "-e", "new")
    assert run_json("import", tmp_path / "old", "--tree", *options)["items"][0]["result"] == "imported"
    (tmp_path / "old" / "half.pt").write_bytes((tmp_path / "old" / "1.pt").read_bytes()[:700])
    result = run("import", tmp_path / "old", "--tree", *options, code=1)
    assert "already there" in result.stdout
    assert "half.pt" in result.stdout
    assert "half.pt: " in result.stderr
    assert "700 B" in result.stdout


def test_a_reason_that_many_have_is_told_once(tmp_path: Path) -> None:
    """In place at the root of several experiments: one sentence with the count, what to do, and nothing is written."""
    for name in ("a", "b"):
        for epoch in (1, 2):
            _write(tmp_path / "runs" / name / f"{epoch}.pt", epoch)
    before = sorted(tmp_path.rglob("*"))
    result = run("import", tmp_path / "runs", "--tree", "--in-place", code=1)
    assert result.stderr.count("only what lies in the folder of the experiment itself") == 1
    assert "4 checkpoints, " in result.stderr
    assert "`ckpt import FOLDER --tree --in-place`" in result.stderr
    assert "4 refused" in result.stderr
    assert sorted(tmp_path.rglob("*")) == before
    assert run_json("import", tmp_path / "runs" / "a", "--tree", "--in-place")["items"][0]["result"] == "imported"


@on_posix
def test_a_tree_fits_80_columns_and_shows_its_progress(tmp_path: Path) -> None:
    """Each path stands above what became of it; the bar counts checkpoints and bytes."""
    paths = [f"{'long' * 8}/epoch_{epoch}.pt" for epoch in (1, 2)]
    for epoch, path in enumerate(paths, start=1):
        _write(tmp_path / "old" / path, epoch)
    arguments = ("import", tmp_path / "old", "--tree", "-s", tmp_path / "store", "-e", "new")
    code, output = run_on_terminal(*arguments, columns=80)
    assert code == 0
    lines = [line.rstrip() for line in re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "\n", output).splitlines()]
    for path in paths:
        assert path in lines
    assert "2/2" in output
    assert re.search(r"KiB, [\d.]+ [KMG]iB/s", output)
    assert len(re.findall(r"checkpoint_epoch_\d{4}_step_\d{6}_\d{8}_\d{6}", output)) == 2
