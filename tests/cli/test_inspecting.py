"""``ckpt inspect``, for people and with ``--json``."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.cli.running import on_posix, payload, run, run_json, run_on_terminal

LONG_NAMES = [f"model.layers.{number}.attention.self.query_key_value.projection.weight" for number in range(3)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of another program, with a tensor that holds NaN."""
    weights = {name: torch.full((4, 2), float(number)) for number, name in enumerate(LONG_NAMES)}
    save_file({**weights, "spoilt": torch.tensor([float("nan"), 1.0])}, path := tmp_path / "w.safetensors")
    return path


def test_a_file_is_told_by_its_path(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An absolute path, and one that needs no slash because the file is in this folder; no store is needed."""
    monkeypatch.chdir(file.parent)
    for name in (file, file.name):
        output = run("inspect", name).stdout
        assert "a safetensors file" in output
        assert "float32 104 B" in output
        assert re.search(r"^to load +Nothing", output, re.MULTILINE)
        assert LONG_NAMES[0] not in output


def test_a_checkpoint_of_the_store_is_told_by_its_name(store: Path, ids: list[str]) -> None:
    """By id, keyword, tag and path: the same answer, with what the manifest says."""
    by_id = run_json("inspect", ids[0], store=store)
    assert by_id["checkpoint"]["checkpoint_id"] == ids[0]
    assert by_id["epoch"] == 1
    for name in ("baseline", payload(store, ids[0]), payload(store, ids[0]).with_suffix(".json")):
        assert run_json("inspect", name, store=store) == by_id
    assert run_json("inspect", "best", store=store)["epoch"] == 2
    latest = run_json("inspect", "latest", store=store)
    assert latest["metrics"]["accuracy"] == "NaN"
    assert "experiment  digits" in run("inspect", "latest", store=store).stdout


def test_a_path_goes_before_a_name(store: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file called like a keyword is what is meant, as everywhere in a shell."""
    monkeypatch.chdir(file.parent)
    file.rename("best")
    assert run_json("inspect", "best", store=store)["kind"] == "safetensors"


def test_a_name_that_is_neither_says_so(
    store: Path, ids: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistyped file is looked for in the store: the message says first that it is no file, whatever else is wrong."""
    monkeypatch.chdir(tmp_path)
    error = run_json("inspect", "model.pt", store=store, code=2)["error"]
    assert error["message"].startswith("there is no file or folder model.pt in this folder, and no checkpoint answers")
    (store / "letters").mkdir()
    (store / "letters" / (payload(store, ids[0]).with_suffix(".json").name)).write_text("{}")
    error = run_json("inspect", "model.pt", store=store, code=2)["error"]
    assert error["message"].startswith("there is no file or folder model.pt in this folder, and the store holds 2")
    assert run_json("inspect", "./model.pt", store=store, code=2)["error"]["type"] == "NotACheckpointError"
    assert "no file or folder model.pt" in run("inspect", "model.pt", code=2).output


def test_damage_is_exit_code_1_with_what_is_known(store: Path, ids: list[str], file: Path) -> None:
    """A truncated file, and a payload that differs from its manifest: one answer with its problem, in both outputs."""
    file.write_bytes(file.read_bytes()[:-3])
    found = run_json("inspect", file, code=1)
    assert "the file at byte" in found["problem"]
    assert (found["kind"], found["size_bytes"]) == ("safetensors", file.stat().st_size)
    assert "problem" in run("inspect", file, code=1).stdout
    payload(store, ids[0]).write_bytes(b"short")
    found = run_json("inspect", ids[0], "--stats", store=store, code=1)
    assert "cut off" in found["problem"]
    assert found["epoch"] == 1


def test_statistics_name_what_is_not_finite(file: Path) -> None:
    """In the table, among the findings, and in JSON."""
    output = run("inspect", file, "--stats").stdout
    assert "NaN in 'spoilt'" in output
    (line,) = [line for line in output.splitlines() if line.startswith("spoilt")]
    assert line.split()[:6] == ["spoilt", "float32", "2", "8", "B", "1"]
    found = run_json("inspect", file, "--stats")
    assert {tensor["name"]: tensor["statistics"]["nan_count"] for tensor in found["tensors"]}["spoilt"] == 1


@on_posix
@pytest.mark.parametrize("option", ["--tensors", "--stats"])
def test_names_are_whole_on_a_narrow_terminal(file: Path, option: str) -> None:
    """In 80 columns, no name is cut or wrapped."""
    code, output = run_on_terminal("inspect", file, option, columns=80)
    assert code == 0
    for name in LONG_NAMES:
        assert name in output
    assert "4x2" in output
