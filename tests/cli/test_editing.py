"""The commands of ``ckpt`` that edit: pin, unpin and tag."""

from __future__ import annotations

from pathlib import Path

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
