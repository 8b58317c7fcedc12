"""Shell completion: ids, tags and experiments of the store that the line names."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.cli.running import CKPT


def completed(line: str, shell: str = "bash", **env: str) -> list[str]:
    """What the console script answers to the shell's question about the last word of a line."""
    words = shlex.split(line)
    if shell == "bash":
        cword = len(words) if line.endswith(" ") else len(words) - 1
        asked = {"_CKPT_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(cword)}
    else:
        asked = {"_CKPT_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": line}
        asked |= {"_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    ended = subprocess.run([CKPT], env={**os.environ, **asked, **env}, capture_output=True, text=True, check=False)
    assert ended.stderr == ""
    return ended.stdout.split("\n")[:-1] if ended.stdout.endswith("\n") else ended.stdout.split("\n")


def test_ids_and_tags_are_completed(store: Path, ids: list[str]) -> None:
    """Of the named store and experiment, the newest id first; a word that nothing begins with is left alone."""
    line = f"ckpt show --store {store} "
    found = completed(line)
    assert found[:2] == ["latest", "best"]
    assert [word for word in found if word in ids] == ids[::-1]
    assert "baseline" in found
    assert completed(f"{line}ba") == ["baseline"]
    assert completed(f"ckpt delete --store {store} checkpoint_epoch_0001") == [ids[0]]
    assert [word for word in completed(f"{line}nosuch") if word] == []


def test_options_are_completed(store: Path) -> None:
    """Tags after ``--tag``, experiments after ``--experiment`` and as the argument of ``watch``."""
    assert completed(f"ckpt list --store {store} --tag epoch-") == ["epoch-2", "epoch-3"]
    assert completed(f"ckpt list --store {store} --experiment d") == ["digits"]
    assert completed("ckpt watch d", CKPT_CHECKPOINT_DIR=str(store)) == ["digits"]
    assert "--where" in completed("ckpt pin --wh")


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells(store: Path, ids: list[str], shell: str) -> None:
    """They get the same words in their own form."""
    assert ids[0] in "".join(completed(f"ckpt show --store {store} checkpoint_epoch_0001", shell))


def test_a_store_that_is_not_there_is_no_error(tmp_path: Path) -> None:
    """A completion prints nothing then, and nothing on stderr."""
    assert [word for word in completed(f"ckpt show --store {tmp_path / 'none'} ") if word] == []
