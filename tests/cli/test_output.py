"""What ``ckpt`` prints, where, and what it must not load for that; and that all of it is documented."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.core.wording import size_text, visible
from tests.cli.running import HOSTILE_TAG, on_posix, run, run_json, run_on_terminal, run_program, strict_json

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "cli.md"
GENERATE = [sys.executable, "-m", "typer", "ckpt_lib.cli.app", "utils", "docs", "--name", "ckpt"]
LONG_NAME = "validation/top1_accuracy_ema_smoothed"
METRICS = ("accuracy", "f1", "grad_norm", "lr", "train/loss")
LIGHT = ["--help", "list --help", "list", "list --json", "experiments", "show latest", "pin best"]
LIGHT += ["backup --all", "export best out", "delete latest --yes", "runs", "why", "pin --tag baseline"]
LISTED_MODULES = """
import sys
import ckpt_lib.cli
sys.argv = ["ckpt", *sys.argv[1:]]
try:
    ckpt_lib.cli.main()
finally:
    heavy = {"torch", "prefect", "pandas", "matplotlib", "numpy", "sqlalchemy", "yaml"}
    print("loaded:", *sorted(heavy & sys.modules.keys()), file=sys.stderr)
"""
MODULES_BESIDE_TORCH = """
import sys
import torch
import numpy
before = {*sys.modules}
import ckpt_lib.cli
sys.argv = ["ckpt", *sys.argv[1:]]
try:
    ckpt_lib.cli.main()
finally:
    print("loaded:", *sorted(sys.modules.keys() - before), file=sys.stderr)
"""
OF_STORES = {
    "ckpt_lib.config",
    "ckpt_lib.manager",
    "ckpt_lib.experiment.locations",
    "fsspec",
    "pydantic_settings",
    "yaml",
}
OF_NOBODY = {"prefect", "pandas", "matplotlib", "sqlalchemy", "alembic", "safetensors", "transformers", "requests"}


@pytest.mark.parametrize("args", LIGHT)
def test_light_commands_load_nothing_heavy(store: Path, tmp_path: Path, args: str) -> None:
    """Each loads what it needs: torch to read payloads, pandas to compare, a database to look at all experiments."""
    needed = ["sqlalchemy"] if args == "experiments" else []
    command = [sys.executable, "-c", LISTED_MODULES, *args.split()]
    env = {**os.environ, "CKPT_CHECKPOINT_DIR": str(store)}
    ended = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.splitlines()[-1].split() == ["loaded:", *needed]


def test_help_builds_no_model() -> None:
    """What only parses a command line waits for no model of a checkpoint, which takes as long again to build."""
    code = "import sys, ckpt_lib.cli.app; print('ckpt_lib.core.manifest' in sys.modules, 'pydantic' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("args", ["inspect small.pt", "inspect small.pt --stats", "convert small.pt out.safetensors"])
def test_files_without_a_store_load_torch_and_little_else(tmp_path: Path, args: str) -> None:
    """What is no checkpoint of a store needs no configuration and no other command, and no more of torch.

    Packages that a save or a query needs would make the user wait for as long as torch itself takes.
    """
    torch.save({"weight": torch.ones(3)}, tmp_path / "small.pt")
    command = [sys.executable, "-c", MODULES_BESIDE_TORCH, *args.split()]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    loaded = {*ended.stderr.splitlines()[-1].split()[1:]}
    assert loaded & (OF_STORES | OF_NOBODY) == set()
    parts = {
        "app",
        "completion",
        "errors",
        "naming",
        "options",
        "output",
        "progress",
        "session",
        "streams",
        args.split(maxsplit=1)[0],
    }
    assert {name.split(".")[2] for name in loaded if name.startswith("ckpt_lib.cli.")} == parts
    assert {".".join(name.split(".")[:2]) for name in loaded if name.startswith("torch.")} <= {"torch._vmap_internals"}


def test_reference_is_up_to_date() -> None:
    """docs/reference/cli.md documents every command and option: its second half is generated from them."""
    command, _, documented = PAGE.read_text(encoding="utf-8").partition("<!-- generated")[2].partition(" -->\n")
    ended = subprocess.run(GENERATE, capture_output=True, text=True, check=True, encoding="utf-8")
    assert documented == re.sub("^#", "##", ended.stdout, flags=re.MULTILINE), f"run{command.partition(':')[2]}"


def test_reference_shows_the_keys_of_an_error(store: Path) -> None:
    """The error document that the reference shows has the keys that a real one has."""
    (documented,) = re.findall(r"```json\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert json.loads(documented)["error"].keys() == run_json("show", "nosuch", store=store, code=2)["error"].keys()


@pytest.mark.parametrize("env", [{}, {"FORCE_COLOR": "1", "COLUMNS": "40"}, {"COLUMNS": "40"}, {"TERM": "dumb"}])
def test_piped_output_is_never_cut(store: Path, ids: list[str], env: dict[str, str]) -> None:
    """In a pipe each checkpoint is one line with everything, whatever the environment says of the width."""
    output = run_program("list", "--store", store, **env).stdout
    assert ("\x1b[" in output) == ("FORCE_COLOR" in env)
    lines = re.sub(r"\x1b\[[\d;]*m", "", output).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ids
    assert f"{HOSTILE_TAG}, baseline" in lines[1]


@on_posix
@pytest.mark.parametrize("columns", [30, 80, 200])
def test_terminal_output_keeps_ids_whole(store: Path, ids: list[str], columns: int) -> None:
    """On a terminal, columns that do not fit are left out and named; ids stay whole, and there are colours."""
    code, output = run_on_terminal("list", "--store", store, columns=columns)
    assert code == 0
    assert all(checkpoint_id in output for checkpoint_id in ids)
    assert "\x1b[1;32mbest" in output
    assert (f"Not shown in {columns} columns: " in output) == (columns == 80)
    assert (HOSTILE_TAG in output) == (columns >= 80)


@on_posix
@pytest.mark.parametrize("command", ["list", "find"])
def test_80_columns_show_what_matters(store: Path, ids: list[str], command: str) -> None:
    """The usual width shows each id whole on a line of its own, and below it the metric, epoch, size, age and marks."""
    asked = ["--sort-by", "accuracy"] if command == "find" else []
    _, output = run_on_terminal(command, "--store", store, *asked, columns=80)
    lines = re.sub(r"\x1b\[[\d;]*m", "", output).splitlines()
    assert lines[1].split()[:5] == ["accuracy", "epoch", "size", "age", "marks"]
    for number, checkpoint_id in enumerate(ids, start=1):
        (place,) = [place for place, line in enumerate(lines) if line.split()[-1:] == [checkpoint_id]]
        metric, epoch, size, unit, age, age_unit, *_ = lines[place + 1].split()
        assert metric in ("0.5", "0.9", "nan")
        assert (epoch, unit) == (str(number), "KiB")
        assert age_unit in ("s", "min")
        assert float(size) > 0
        assert age.isdigit()
    assert "A wider terminal and --json show all." in " ".join(lines)


@on_posix
@pytest.mark.parametrize("command", ["why", "show"])
def test_sentences_are_wrapped_between_words(store: Path, ids: list[str], command: str) -> None:
    """Of what a fact says in words, no line is wider than the terminal; in a pipe it is one line."""
    text = "a description in so many words that no terminal of eighty columns shows it in a line"
    run("tag", ids[0], "--description", text, store=store)
    _, output = run_on_terminal(command, ids[0], "--store", store, columns=80)
    lines = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", output).splitlines()
    said = "\n".join(line.strip() for line in lines)
    words = text if command == "show" else "a load that fails all the same does not fit the model"
    assert words in " ".join(said.split())
    assert words not in said
    assert all(len(line) <= 80 for line in lines if line.strip() and set(line.split()) & set(words.split()))
    assert words in run(command, ids[0], store=store).stdout


@on_posix
def test_empty_columns_give_way_first(tmp_path: Path) -> None:
    """Without tags, their column takes no room from those that tell something, and is not called missing."""
    manager = CheckpointManager(CheckpointConfig(checkpoint_dir=str(tmp_path / "plain")), "run")
    for epoch in (1, 2):
        manager.save_checkpoint(model=nn.Linear(1, 1), epoch=epoch, metrics={"val_loss": 1 / epoch})

    def listed(columns: int) -> list[str]:
        _, output = run_on_terminal("list", "--store", tmp_path / "plain", columns=columns)
        return re.sub(r"\x1b\[[\d;]*m", "", output).split()

    assert {"tags", "size", "epoch", "step"} <= {*listed(200)}
    narrow = listed(102)
    assert {"size", "epoch", "step"} <= {*narrow}
    assert "tags" not in narrow


@pytest.fixture
def wide_store(tmp_path: Path) -> tuple[Path, list[str]]:
    """A store and its ids: many metrics, one with a long name and one of text, and steps of eight digits."""
    config = CheckpointConfig(checkpoint_dir=str(tmp_path / "wide"), monitor_metric=LONG_NAME)
    manager = CheckpointManager(config, "run")
    ids = []
    for epoch in (1, 2, 3, 4):
        metrics = {LONG_NAME: 1 / epoch, **dict.fromkeys(METRICS, 0.123456), "note": "a long text " * 20}
        saved = manager.save_checkpoint(
            model=nn.Linear(1, 1),
            epoch=epoch,
            step=12_345_678,
            metrics=metrics,
            config={"name": "adamw" * epoch * 9},
        )
        assert saved is not None
        ids.append(saved)
    return tmp_path / "wide", ids


def test_a_pipe_shows_every_metric(wide_store: tuple[Path, list[str]]) -> None:
    """Where nothing is cut, no metric is left out."""
    headers = run("list", store=wide_store[0]).stdout.splitlines()[0].split()
    assert headers[-len(METRICS) - 1 :] == sorted((*METRICS, "note"))
    assert headers[1] == LONG_NAME


@on_posix
@pytest.mark.parametrize("columns", [60, 80])
def test_no_line_is_wider_than_the_terminal(wide_store: tuple[Path, list[str]], columns: int) -> None:
    """Long names, texts and many checkpoints fold, or stand one below the other; each id stays whole."""
    store, ids = wide_store
    for command in (["list"], ["compare", *ids[:2]], ["compare", *ids], ["cleanup", "--dry-run", "--keep", "2"]):
        code, output = run_on_terminal(*command, "--store", store, columns=columns)
        lines = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", output).splitlines()
        assert code == 0
        assert [line for line in lines if len(line) > columns] == []
        assert all(any(checkpoint_id in line for line in lines) for checkpoint_id in ids if checkpoint_id in command)
        assert command != ["list"] or all(name in output for name in METRICS)


@on_posix
@pytest.mark.parametrize("columns", [60, 80])
def test_help_fills_its_lines(columns: int) -> None:
    """The description of a command is broken where the terminal ends, not where its source does as well."""
    _, output = run_on_terminal("cleanup", "--help", columns=columns)
    text = re.sub(r"\x1b\[[\d;]*m", "", output)
    described = text.partition("cleanup [OPTIONS]")[2].partition("╭")[0]
    lines = [line.strip() for line in described.splitlines() if line.strip()]
    for line, following in itertools.pairwise(lines):
        is_last = line.endswith("policy.") or following.startswith("Example:")
        assert is_last or len(f"{line} {following.split()[0]}") > columns - 2, line


@on_posix
def test_progress_takes_one_line(store: Path) -> None:
    """On a narrow terminal the bar leaves out what would wrap, for no one takes the second line away."""
    _, output = run_on_terminal("validate", "--all", "--store", store, columns=40)
    assert not [line for line in output.split("\n") if line.strip().startswith(("KiB", "kB/s"))]


def test_unknown_tags_are_told(store: Path) -> None:
    """A list that is empty for a misspelt tag says so."""
    assert "Did you mean 'baseline'?" in run("list", "--tag", "basline", store=store).stderr
    assert "has the tag" not in run("list", "--tag", "baseline", store=store).stderr


@on_posix
@pytest.mark.parametrize(("answer", "code", "left"), [("y", 0, 2), ("n", 4, 3), ("", 4, 3)])
def test_terminal_is_asked_before_deleting(store: Path, ids: list[str], answer: str, code: int, left: int) -> None:
    """`delete` and `cleanup` show what would go and delete it only after a yes; for nothing, they do not ask."""
    ended, output = run_on_terminal("delete", "baseline", "--store", store, columns=120, answer=answer or "\n")
    assert ended == code
    assert output.index(ids[0]) < output.index("Delete 1 checkpoint? [y/N]:")
    assert len(run_json("list", store=store)["checkpoints"]) == left
    command = ("cleanup", "--keep", "0", "--store", store)
    ended, output = run_on_terminal(*command, columns=120, answer=answer or "\n")
    assert ended == code
    assert "newest valid" in output
    assert ("[y/N]:" in output) == (left == 3)  # of two, one is the newest and one the best


@on_posix
def test_terminal_shows_progress(store: Path) -> None:
    """Reading bytes shows a bar on a terminal, which is gone at the end, and none in a pipe."""
    code, output = run_on_terminal("validate", "--all", "--store", store, columns=120)
    assert code == 0
    assert "Validating" in output
    assert "KiB" in output
    assert "Validating" not in run("validate", "--all", store=store).output


def test_hostile_text_stays_text(store: Path, ids: list[str]) -> None:
    """Markup, emoji codes and control characters in tags and names are shown, never obeyed."""
    for command in (["list"], ["show", ids[0]], ["compare", *ids], ["summary"], ["tag", ids[0], "--add", "[red]"]):
        assert HOSTILE_TAG in run(*command, store=store).stdout
    assert "[bold]x" in run("show", "[bold]x[/bold]", store=store, code=2).stderr
    stderr = run("list", "--store", f"{store}/\x1b[31m", code=2).stderr
    assert "\x1b" not in stderr
    assert r"\x1b[31m" in stderr
    assert visible("a\x1b[2J\u202eb\nc") == r"a\x1b[2J\u202eb\nc"


def test_ascii_terminal_shows_escapes(store: Path, ids: list[str]) -> None:
    """A letter that the output's encoding lacks becomes an escape instead of an error."""
    run("tag", ids[0], "--add", "naïve ☃", store=store)
    ended = run_program("show", ids[0], "--store", store, PYTHONIOENCODING="ascii")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert r"na\xefve \u2603" in ended.stdout
    assert "naïve ☃" in strict_json(run_program("show", ids[0], "--store", store, "--json").stdout)["tags"]


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (2**20, "1.0 MiB"), (3 * 2**40, "3.0 TiB")],
)
def test_sizes(size_bytes: int, text: str) -> None:
    """Sizes are in binary units, and named so."""
    assert size_text(size_bytes) == text
