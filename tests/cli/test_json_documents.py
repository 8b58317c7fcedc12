"""Every command has a JSON document, whose keys docs/reference/json.md lists; and every command has an example."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.cli.app import app
from ckpt_lib.core.metadata import CheckpointMetadata
from tests.cli.running import payload, run_json

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "json.md"
ROW = re.compile(r"^\| `ckpt ([a-z]+)([^`]*)` \| (.*) \|$", re.MULTILINE)
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
SERVED = {"serve", "watch", "ui"}
"""Commands that end with Ctrl-C: they print their document at once."""
PROTOCOL = "mcp"
"""What this command prints is the protocol's."""
BEFORE = {
    "undelete": [["delete", "baseline", "--yes"]],
    "import": [["export", "best", "exported"]],
    "trash": [["delete", "baseline", "--yes"]],
}
ARGUMENTS = {
    "show": [["best"], ["--where", "epoch>=1"]],
    "inspect": [["best"]],
    "compare": [["latest", "best"]],
    "why": [[], ["best"]],
    "advise": [[], ["elsewhere"]],
    "repair": [["best"], ["--tag", "baseline"]],
    "quarantine": [[], ["latest"]],
    "reconcile": [["--allow-missing"]],
    "restore": [["best"], ["--tag", "baseline"]],
    "pin": [["best"], ["--tag", "baseline"]],
    "tag": [["best", "--add", "x"], ["--tag", "baseline", "--add", "x"]],
    "metrics": [["best"], ["--tag", "baseline"]],
    "export": [["best", "out"], ["--where", "epoch<3", "out/"]],
    "convert": [["small.pt", "small.safetensors"]],
    "import": [["exported"], ["exported", "--tree"]],
    "token": [[], ["laptop"], ["laptop", "--remove"]],
    "cleanup": [["--dry-run"]],
    "delete": [["best", "--dry-run"], ["baseline", "--yes"]],
    "thin": [["best", "--dry-run"], ["baseline", "--yes"]],
    "undelete": [["--tag", "baseline"]],
}
CASES = [
    (name, arguments) for name in COMMANDS if name not in {*SERVED, PROTOCOL} for arguments in ARGUMENTS.get(name, [[]])
]
OF_NO_STORE = {"convert", "token"}


def documented() -> dict[str, list[set[str]]]:
    """The keys of each document of each command, in the order of the page."""
    found: dict[str, list[set[str]]] = {}
    for name, _, keys in ROW.findall(PAGE.read_text(encoding="utf-8")):
        whole = set(CheckpointMetadata.model_fields) if keys.startswith("all of a [checkpoint]") else set()
        found.setdefault(name, []).append(whole | set(re.findall(r"`(\w+)`", keys)))
    return found


@pytest.fixture
def place(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what commands need, as the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CKPT_FALLBACK_DIR", str(tmp_path / "fallback"))
    monkeypatch.setenv("CKPT_TOKENS", str(tmp_path / "tokens.json"))
    torch.save({"weight": torch.ones(3)}, tmp_path / "small.pt")
    (tmp_path / "elsewhere").mkdir()
    torch.save({"weight": torch.ones(3)}, tmp_path / "elsewhere" / "other.pt")
    return store


@pytest.mark.parametrize(("name", "arguments"), CASES, ids=[" ".join((name, *words)) for name, words in CASES])
def test_the_page_lists_the_keys_of_each_document(place: Path, name: str, arguments: list[str]) -> None:
    """A command prints a document with the keys that one of its rows lists, no more and no less."""
    for words in BEFORE.get(name, []):
        run_json(*words, store=place)
    if name == "quarantine" and arguments:
        latest = CheckpointManager(CheckpointConfig(checkpoint_dir=str(place)), "digits").checkpoint_ids()[-1]
        payload(place, latest).write_bytes(b"damaged")
        for backup in place.glob(f"digits/backups/{latest}.pt"):
            backup.write_bytes(b"damaged")
    if name == "token" and "--remove" in arguments:
        run_json("token", "laptop")
    keys = run_json(name, *arguments, store=None if name in OF_NO_STORE else place).keys()
    assert set(keys) in documented()[name]


def test_every_command_is_on_the_page() -> None:
    """No command is missing, and none is left over; each takes ``--json``."""
    assert set(documented()) == set(COMMANDS) - {PROTOCOL}
    for name, command in COMMANDS.items():
        assert (name == PROTOCOL) or "--json" in {option for item in command.params for option in item.opts}, name


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_an_example_that_it_takes(name: str) -> None:
    """Its help ends with one, of this command, whose arguments can be parsed."""
    command = COMMANDS[name]
    (example,) = re.findall(r"Example: (.*)", command.help)
    program, subcommand, *words = shlex.split(example)
    assert (program, subcommand) == ("ckpt", name)
    command.make_context(name, list(words), resilient_parsing=False)


def test_the_page_lists_the_fields_of_a_checkpoint() -> None:
    """As the class declares them."""
    section = PAGE.read_text(encoding="utf-8").partition("## A checkpoint")[2].partition("They are")[0]
    assert re.findall(r"`(\w+)`", section) == list(CheckpointMetadata.model_fields)
