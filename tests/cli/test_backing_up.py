"""The commands of ``ckpt`` that copy: backup, restore, export and import."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.cli.running import payload, run, run_json
from tests.helpers import flip_bit


def test_restore_brings_back_damaged_and_deleted(store: Path, ids: list[str]) -> None:
    """What is damaged, or deleted with its whole experiment, comes back from the backup and validates."""
    flip_bit(payload(store, ids[0]), 100)
    assert ids[0] in run("restore", "baseline", store=store).stdout
    for file in (store / "digits").glob("checkpoint_*"):
        file.unlink()
    restored = run_json("restore", ids[1], "-e", "digits", store=store)
    assert (restored["checkpoint_id"], restored["metrics"]["accuracy"]) == (ids[1], 0.9)
    run("validate", "--all", store=store)


def test_restore_finds_the_latest_after_a_disk_loss(store: Path, ids: list[str], tmp_path: Path) -> None:
    """The names stand for backups where the store is empty, as for a load; other names are refused as before."""
    elsewhere = {"CKPT_BACKUP_DIR": str(tmp_path / "vault")}
    run("backup", "--all", store=store, env=elsewhere)
    shutil.rmtree(store)
    hint = run("restore", "another", "-e", "digits", store=store, env=elsewhere, code=2).stderr
    assert "There are 3 backups" in hint
    assert ids[2] in run("restore", "latest", "-e", "digits", store=store, env=elsewhere).stdout


def test_restore_says_how_to_keep_what_comes_back(store: Path, ids: list[str]) -> None:
    """A training retires it again, unless it is pinned; of what was there all the time, nothing is said."""
    hint = "--pin keeps it"
    assert hint not in run("restore", ids[0], store=store).stderr
    run("delete", ids[0], ids[1], "--yes", store=store)
    assert hint in run("restore", ids[0], store=store).stderr
    assert hint not in run("restore", ids[1], "--pin", store=store).stderr
    assert run_json("show", ids[1], store=store)["pinned"]


def test_backup_reports_each_outcome(store: Path, ids: list[str]) -> None:
    """A damaged checkpoint is reported with exit code 1 and never copied; the others are backed up."""
    shutil.rmtree(store / "digits" / "backups")
    flip_bit(payload(store, ids[0]), 100)
    outcomes = run_json("backup", "--all", store=store, code=1)["backups"]
    assert [outcome["result"] for outcome in outcomes] == ["damaged", "copied", "copied"]
    assert outcomes[0]["error"]["damages"][0]["file"] == f"{ids[0]}.pt"
    assert f"{ids[2]}  already there" in run("backup", store=store).stdout
    assert "was altered" in run("backup", ids[0], store=store, code=1).stderr


@pytest.mark.parametrize("is_backup_damaged", [False, True])
def test_backup_is_not_silent_about_damage(store: Path, ids: list[str], is_backup_damaged: bool) -> None:
    """A damaged checkpoint is no success because a file of its size is among the backups."""
    flip_bit(payload(store, ids[0]), 100)
    backup = store / "digits" / "backups" / f"{ids[0]}.pt"
    if is_backup_damaged:
        flip_bit(backup, 100)
    before = backup.read_bytes()
    for options in ([ids[0]], ["--all", "--verify"]):
        found = run_json("backup", *options, store=store, code=1)
        assert found["verified"]
        assert found["backups"][0]["result"] == "damaged"
    assert backup.read_bytes() == before
    payload(store, ids[0]).unlink()  # which shows without reading a byte
    assert run_json("backup", "--all", store=store, code=1)["backups"][0]["result"] == "damaged"


def test_backup_verifies_and_retires(store: Path, ids: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged backup is replaced; a copy that max_backups does not keep is not reported as kept."""
    flip_bit(store / "digits" / "backups" / f"{ids[0]}.pt", 100)
    quick = run("backup", "--all", store=store)
    assert "already there" in quick.stdout
    assert "only the sizes were compared" in quick.stderr
    assert run_json("backup", "--all", "--verify", store=store)["backups"][0]["result"] == "copied"
    flip_bit(store / "digits" / "backups" / f"{ids[0]}.pt", 100)
    named = run("backup", ids[0], store=store)
    assert "copied" in named.stdout
    assert named.stderr == ""
    shutil.rmtree(store / "digits" / "backups")
    monkeypatch.setenv("CKPT_MAX_BACKUPS", "1")
    result = run("backup", "--all", store=store)
    held = [item["checkpoint_id"] for item in run_json("list", "--backups", store=store)["checkpoints"]]
    copied = [line.split()[0] for line in result.stdout.splitlines() if " copied " in line]
    assert copied == held
    assert "max_backups=1" in result.stderr


def test_export_and_import(store: Path, ids: list[str], tmp_path: Path) -> None:
    """An export is plain for torch.load, and becomes the newest checkpoint of an experiment that may be new."""
    path = run_json("export", "best", tmp_path / "out", store=store)["path"]
    assert torch.load(path, weights_only=True)["epoch"] == 2
    assert str(tmp_path / "out") in run("export", "best", tmp_path / "out", store=store).stdout
    imported = run_json("import", path, "-s", tmp_path / "elsewhere", "-e", "new")
    expected = {"experiment_name": "new", "checkpoint_id": ids[1], "result": "imported", "epoch": 2, "description": ""}
    assert expected == {name: imported[name] for name in expected}
    run("validate", "-s", tmp_path / "elsewhere")
    assert ids[1] in run("import", path, store=store).stdout


def test_import_says_what_is_new(store: Path, tmp_path: Path) -> None:
    """An experiment that was not there is named as new, with the one that was perhaps meant; a repeat is told."""
    run("export", "best", tmp_path / "out", store=store)
    command = ("import", tmp_path / "out", "--experiment", "digit")
    first, again = run(*command, store=store), run(*command, store=store)
    assert first.stdout.startswith("imported")
    assert "'digit' is a new experiment. Did you mean 'digits'?" in first.stderr
    assert again.stdout.startswith("already there")
    assert again.stderr == ""
    assert run_json(*command, store=store)["result"] == "already there"


def test_export_for_another_program(store: Path, tmp_path: Path) -> None:
    """With --format and its companions, the weights alone are written in another type."""
    path = run_json("export", "best", tmp_path / "w.safetensors", "--only", "model", "--dtype", "bf16", store=store)[
        "path"
    ]
    assert all(tensor.dtype == torch.bfloat16 for tensor in safetensors.torch.load_file(path).values())
    refused = run("export", "best", tmp_path / "x.pt", "--format", "onnx", store=store, code=2)
    assert "expected torch, safetensors, hf-folder, lightning" in " ".join(refused.stderr.split())


def test_convert_needs_no_store(tmp_path: Path) -> None:
    """A script's file becomes one of Lightning; what is not in it is said on stderr, and in the JSON document."""
    torch.save({"model": {"weight": torch.ones(2)}, "epoch": 3, "val_loss": 0.5}, tmp_path / "a.pth")
    shown = run("convert", tmp_path / "a.pth", tmp_path / "b.ckpt")
    assert "lightning" in shown.stdout
    assert "no place for metrics" in shown.stderr
    found = run_json("convert", tmp_path / "a.pth", tmp_path / "b.ckpt")
    assert (found["path"], found["format"], found["files"]) == (str(tmp_path / "b.ckpt"), "lightning", ["b.ckpt"])
    assert torch.load(found["path"], weights_only=True)["epoch"] == 3
