"""The commands of ``ckpt`` that edit: pin, unpin, tag and metrics."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.running import run, run_json


def test_pin_protects_and_lets_go(store: Path, ids: list[str]) -> None:
    """A pinned checkpoint is refused by delete, together with everything named beside it, until it is unpinned."""
    assert "yes" in run("pin", "baseline", store=store).stdout
    assert run_json("delete", ids[1], ids[0], "--yes", store=store, code=4)["error"]["checkpoint_id"] == ids[0]
    assert len(run_json("list", store=store)["checkpoints"]) == 3
    assert run_json("pin", ids[0], "--off", store=store)["pinned"] is False
    run("delete", ids[0], "--yes", store=store)


def test_tag_edits(store: Path, ids: list[str]) -> None:
    """`tag` adds and removes tags and replaces the description."""
    options = ("--add", "a", "--add", "b", "--remove", "epoch-2", "--description", "kept")
    assert "a, b" in run("tag", "epoch-2", *options, store=store).stdout
    shown = run_json("tag", ids[1], "--description", "", store=store)
    assert (shown["tags"], shown["description"]) == (["a", "b"], "")


def test_metrics_are_added_and_shown(store: Path, ids: list[str]) -> None:
    """`metrics` adds to what the save recorded; `show` and `list` take it for any other, with source and time."""
    added = run("metrics", ids[0], "f1=0.91", "a=b=3", "nan=NaN", "--source", "eval/x", store=store).stdout
    assert "0.91  (by eval/x, 20" in added
    replaced = ("f1=0.5", "accuracy=0.99", "--source", "eval/y")
    assert "by the save" in run_json("metrics", ids[0], *replaced, store=store, code=2)["error"]["message"]
    shown = run_json("metrics", ids[0], *replaced, "--replace", store=store)
    assert (shown["metrics"]["f1"], shown["metrics"]["a=b"], shown["metrics"]["nan"]) == (0.5, 3, "NaN")
    assert [item["source"] for item in shown["added_metrics"]] == ["eval/x"] * 3 + [None] + ["eval/y"] * 2
    text = run("show", ids[0], store=store).stdout
    assert "before: 0.91 by eval/x)" in text
    assert "by the save)" in text
    assert run_json("metrics", ids[0], store=store) == shown
    found = run_json("list", "--where", "f1>=0.5", store=store)["checkpoints"]
    assert [item["checkpoint_id"] for item in found] == [ids[0]]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["accuracy=0.9"], "--source"),
        (["--source", "x"], "no metrics to add"),
        (["--replace"], "no metrics to add"),
        (["accuracy", "--source", "x"], "'accuracy' is no metric"),
        (["accuracy=0,91", "--source", "x"], "'accuracy=0,91' is no metric"),
        (["=1", "--source", "x"], "'=1' is no metric"),
        (["a=1", "a=2", "--source", "x"], "given twice"),
    ],
)
def test_what_is_no_metric_is_refused(store: Path, ids: list[str], words: list[str], says: str) -> None:
    """A decimal comma or a missing source is no text metric: nothing is recorded."""
    assert says in run_json("metrics", ids[0], *words, store=store, code=2)["error"]["message"]
    assert run_json("metrics", ids[0], store=store)["added_metrics"] == []
