"""What to run, in which environment: refused before anything is started if it cannot work."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.errors import ConfigError, InvalidNameError
from ckpt_lib.launch.command import child_environment, with_program, words_of
from ckpt_lib.launch.launcher import LaunchRequest
from tests.launch.running import request

WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=10)


@given(st.lists(WORDS, min_size=1).filter(lambda words: words[0]))
def test_quoted_text_is_split_into_its_words(words: list[str]) -> None:
    """What a shell would make of it, quoted operators included; a list is taken as it is."""
    assert words_of(words) == words
    assert words_of(" ".join("'" + word.replace("'", "'\"'\"'") + "'" for word in words)) == words


@pytest.mark.parametrize("command", ["a | b", "a && b", "a;b", "a > log", "a 2>&1", "a &", "(a)", "a <b", "a||b"])
def test_a_shell_is_not_guessed(command: str) -> None:
    """Without a shell, its operators would be arguments, silently."""
    with pytest.raises(ConfigError, match="but no shell runs it"):
        words_of(command)
    assert words_of(f"sh -c {shlex.quote(command)}") == ["sh", "-c", command]


@pytest.mark.parametrize("command", ["", "   ", [], [""], "it's", ["a\0b"], [1, 2], None])
def test_what_is_no_command_is_refused(command: Any) -> None:
    """Empty, unfinished, or not text."""
    with pytest.raises(ConfigError):
        words_of(command)


def test_the_environment_carries_the_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The command's manager has the options of the launch, and none that the launcher's own environment has."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CKPT_SAVE_INTERVAL", "7")
    monkeypatch.setenv("CKPT_EXPERIMENT", "another")
    config = CheckpointConfig(checkpoint_dir="store", backup_checkpoints=False, monitor_metric="é", trash_seconds=1.5)
    environment = child_environment(config, "run", "the-id", {"OTHER": "value"})
    assert environment["CKPT_LAUNCH_ID"] == "the-id"
    assert environment["OTHER"] == "value"
    for name in ("CKPT_SAVE_INTERVAL", "CKPT_EXPERIMENT"):
        monkeypatch.delenv(name)
    for name, value in environment.items():
        if name.startswith("CKPT_"):
            monkeypatch.setenv(name, value)
    manager = CheckpointManager.from_env()
    assert manager.experiment_name == "run"
    assert manager.config == config.model_copy(update={"checkpoint_dir": str(tmp_path / "store")})
    assert manager.config.model_fields_set == config.model_fields_set


def test_a_manager_from_the_environment_needs_an_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    """An argument comes first, then the variable; without both, nothing is guessed."""
    with pytest.raises(ConfigError, match="CKPT_EXPERIMENT"):
        CheckpointManager.from_env()
    monkeypatch.setenv("CKPT_EXPERIMENT", "run")
    assert CheckpointManager.from_env().experiment_name == "run"
    manager = CheckpointManager.from_env("mine", save_interval=3)
    assert (manager.experiment_name, manager.config.save_interval) == ("mine", 3)


@pytest.mark.parametrize("name", ["CKPT_CHECKPOINT_DIR", "CKPT_EXPERIMENT", "CKPT_LAUNCH_LOCK", "CKPT_SAVE_INTERVAL"])
def test_what_the_launch_sets_cannot_be_set_twice(name: str) -> None:
    """Two answers to one question are refused; so are names that no environment can hold."""
    with pytest.raises(ConfigError, match="set by the launch"):
        child_environment(CheckpointConfig(), "run", "id", {name: "x"})
    for wrong in ({"": "x"}, {"a=b": "x"}, {"a": "\0"}):
        with pytest.raises(ConfigError):
            child_environment(CheckpointConfig(), "run", "id", wrong)


def test_programs_of_the_same_environment_are_found(tmp_path: Path) -> None:
    """``torchrun`` is that beside this Python, even where PATH does not lead there; a path is one from the folder."""
    assert with_program(["torchrun", "x"], {"PATH": "/bin"}, "/") == [
        str(Path(sys.executable).parent / "torchrun"),
        "x",
    ]
    (tmp_path / "tool").touch(0o755)
    assert with_program(["./tool"], {}, str(tmp_path)) == [str(tmp_path / "tool")]
    with pytest.raises(ConfigError):
        with_program(["tool"], {"PATH": ""}, str(tmp_path))


def test_a_request_is_checked_when_it_is_made(tmp_path: Path) -> None:
    """Names, stores that no other process reaches, and limits that make no sense."""
    with pytest.raises(ConfigError, match="memory"):
        LaunchRequest("true", CheckpointConfig(checkpoint_dir="memory://x"), "run", "id")
    with pytest.raises(InvalidNameError):
        LaunchRequest("true", CheckpointConfig(), "../run", "id")
    for options in ({"stop_seconds": -1}, {"stall_seconds": 0}, {"stop_seconds": float("nan")}):
        with pytest.raises(ConfigError):
            request(tmp_path, "true", **options)
