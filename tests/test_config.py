"""``CheckpointConfig``: options, presets, YAML and environment."""

from __future__ import annotations

import copy
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.errors import ConfigError
from ckpt_lib.policies.retention import policy_from_yaml

ASKED_FOR: dict[str, tuple[Any, Any]] = {
    "checkpoint_dir": (str, "checkpoints"),
    "save_interval": (int, 1),
    "max_checkpoints": (int, 10),
    "save_best_only": (bool, False),
    "monitor_metric": (str, "val_loss"),
    "monitor_mode": (Literal["min", "max"], "min"),
    "save_optimizer": (bool, True),
    "save_scheduler": (bool, True),
    "save_rng": (bool, True),
    "save_metadata": (bool, True),
    "compression": (bool | Literal["zstd"], False),
    "backup_checkpoints": (bool, True),
    "validate_checkpoints": (bool, True),
}


def test_options_have_the_names_types_and_defaults_that_were_asked_for() -> None:
    """Every option asked for is there, typed and with its default; all of them can be passed by name."""
    fields = CheckpointConfig.model_fields
    found = {name: (fields[name].annotation, fields[name].default) for name in ASKED_FOR}
    assert found == ASKED_FOR
    defaults = {name: default for name, (_, default) in ASKED_FOR.items()}
    assert CheckpointConfig(**defaults) == CheckpointConfig()


def test_development_preset() -> None:
    """Development keeps 5 and saves every epoch; options given override it."""
    config = CheckpointConfig.development(checkpoint_dir="d")
    assert (config.max_checkpoints, config.save_interval, config.checkpoint_dir) == (5, 1, "d")
    assert CheckpointConfig.development(max_checkpoints=7).max_checkpoints == 7


def test_production_preset() -> None:
    """Production saves every 10 epochs, the best only, keeps 20, backs up and validates; options override it."""
    config = CheckpointConfig.production()
    assert (config.save_interval, config.max_checkpoints, config.save_best_only) == (10, 20, True)
    assert config.backup_checkpoints
    assert config.validate_checkpoints
    assert CheckpointConfig.production(save_best_only=False).save_best_only is False


def test_yaml(tmp_path: Path) -> None:
    """A YAML mapping configures; options given override it; an empty file means the defaults."""
    path = tmp_path / "config.yaml"
    path.write_text("save_interval: 5\nmonitor_metric: accuracy\nmonitor_mode: max\nsave_best_only: true\n")
    config = CheckpointConfig.from_yaml(path, save_interval=2)
    assert (config.save_interval, config.monitor_metric, config.monitor_mode) == (2, "accuracy", "max")
    assert config.save_best_only
    path.write_text("")
    assert CheckpointConfig.from_yaml(str(path)) == CheckpointConfig()


@pytest.mark.parametrize(
    "content",
    [
        b"- a\n- list\n",
        b"just text",
        b"1: 2\n",
        b"save_intervall: 5\n",
        b"save_interval: [1]\n",
        b"save_interval: 0\n",
        b"a: [unclosed\n",
        b"!!python/object/apply:os.system ['touch canary']\n",
        b"\xff\xfe\x00bad",
    ],
)
def test_bad_yaml_is_one_typed_error(tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anything but a mapping of known options with valid values is refused, and no code in it runs."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError):
        CheckpointConfig.from_yaml(path)
    assert [item.name for item in tmp_path.iterdir()] == ["config.yaml"]


def doubling(pieces: int) -> str:
    """Lists that hold each other ten times: a page of text for ten to the power of ``pieces`` values."""
    lines = ["a0: &a0 [x]"]
    lines += [f"a{number}: &a{number} [{','.join([f'*a{number - 1}'] * 10)}]" for number in range(1, pieces)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("".join(f"key{number}: 1\n" for number in range(160_000)), "too large"),
        (f"checkpoint_dir: {'x' * 2**24}", "too large"),
        (f"save_interval: [{'1,' * 20_000}]", "save_interval"),
        ("".join(f"key{number}: 1\n" for number in range(4_000)), "and 3990 more"),
        (f"a: {'[' * 10_000}", "nested too deeply"),
        (f"save_interval: {'9' * 10_000}", "cannot be read"),
        (doubling(9), "aliases"),
        ("save_interval: 5\nsave_interval: 7\n", "'save_interval' is there twice"),
        ("a: &a {x: 1}\n<<: *a\n", "aliases"),
    ],
    ids=["keys", "size", "list", "unknown", "depth", "number", "doubling", "twice", "merged"],
)
def test_any_yaml_costs_little(tmp_path: Path, content: str, words: str) -> None:
    """Whatever a file holds, the error is a short one, at once; an option that is there twice is not guessed."""
    path = tmp_path / "config.yaml"
    path.write_text(content)
    started = time.process_time()
    with pytest.raises(ConfigError, match=words) as caught:
        CheckpointConfig.from_yaml(path)
    assert time.process_time() - started < 10
    assert len(str(caught.value)) < 2_500


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_only_a_regular_file_configures(tmp_path: Path) -> None:
    """A FIFO is not waited for, and a device that never ends is not read."""
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero")):
        with pytest.raises(ConfigError, match="no regular file"):
            CheckpointConfig.from_yaml(path)
        with pytest.raises(ConfigError, match="no regular file"):
            policy_from_yaml(path)


def test_wrong_values_are_shown_briefly() -> None:
    """A value of any size, or one that holds itself, makes no long message."""
    itself: list[Any] = []
    itself.append(itself)
    for value in ("x" * 10**6, [[1] * 1000] * 1000, itself, 10**30, 10**5000):
        with pytest.raises(ConfigError, match="save_interval=") as caught:
            CheckpointConfig(save_interval=value)  # type: ignore[arg-type]
        assert len(str(caught.value)) < 500


@pytest.mark.parametrize("path", ["missing.yaml", "", ".", "a\0b", None, 5])
def test_a_yaml_file_that_is_none_is_one_typed_error(
    tmp_path: Path, path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Missing files, folders and what is no path at all are refused alike."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError):
        CheckpointConfig.from_yaml(path)


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """CKPT_* variables configure, other variables do not, and options given override them."""
    for name, value in {
        "CKPT_SAVE_INTERVAL": "5",
        "CKPT_SAVE_BEST_ONLY": "true",
        "ckpt_monitor_mode": "max",
        "CKPT_BACKUP_CHECKPOINTS": "0",
        "CKPT_CHECKPOINT_DIR": "/data/c",
        "SAVE_OPTIMIZER": "false",
        "CKPT_SOMETHING_ELSE": "1",
    }.items():
        monkeypatch.setenv(name, value)
    config = CheckpointConfig.from_env(max_checkpoints=3)
    assert (config.save_interval, config.save_best_only, config.monitor_mode) == (5, True, "max")
    assert (config.backup_checkpoints, config.checkpoint_dir, config.max_checkpoints) == (False, "/data/c", 3)
    assert config.save_optimizer
    assert type(config) is CheckpointConfig
    assert CheckpointConfig.from_env(save_interval=1).save_interval == 1


def test_the_environment_says_only_what_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty environment is the defaults, and only a variable that is there counts as set."""
    assert CheckpointConfig.from_env() == CheckpointConfig()
    assert not CheckpointConfig.from_env().model_fields_set
    monkeypatch.setenv("CKPT_MONITOR_METRIC", "accuracy")
    assert CheckpointConfig.from_env().model_fields_set == {"monitor_metric"}


@pytest.mark.parametrize(("name", "value"), [("CKPT_SAVE_INTERVAL", "often"), ("CKPT_COMPRESSION", "gzip")])
def test_a_bad_environment_names_itself(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """The error says that the environment is to blame, and which option."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=rf"environment.*{name.removeprefix('CKPT_').lower()}"):
        CheckpointConfig.from_env()


@pytest.mark.parametrize(
    "options",
    [
        {"save_interval": 0},
        {"save_interval": -1},
        {"save_interval": "often"},
        {"save_interval": 1.5},
        {"save_interval": None},
        {"max_checkpoints": -1},
        {"max_backups": -1},
        {"monitor_mode": "minimum"},
        {"monitor_metric": ""},
        {"monitor_metric": 5},
        {"checkpoint_dir": ""},
        {"checkpoint_dir": None},
        {"checkpoint_dir": "a\0b"},
        {"backup_dir": ""},
        {"save_best_only": "perhaps"},
        {"compression": "gzip"},
        {"max_checkpoint": 5},
    ],
)
def test_a_wrong_option_is_one_typed_error_that_names_it(options: dict[str, Any]) -> None:
    """Each is refused by name, in our error, which is also a ValueError."""
    with pytest.raises(ConfigError, match=next(iter(options))) as caught:
        CheckpointConfig(**options)
    assert isinstance(caught.value, ValueError)


def test_all_wrong_options_are_named_at_once() -> None:
    """Nobody has to fix options one error at a time."""
    wrong: dict[str, Any] = {"save_interval": 0, "monitor_mode": "up", "unknown": 1}
    with pytest.raises(ConfigError) as caught:
        CheckpointConfig(**wrong)
    assert all(name in str(caught.value) for name in ("save_interval", "monitor_mode", "unknown"))


def test_a_config_is_frozen_and_takes_paths(tmp_path: Path) -> None:
    """What a manager was made with cannot change under it; a Path means the same as its text."""
    config = CheckpointConfig.model_validate({"checkpoint_dir": tmp_path, "backup_dir": tmp_path / "b"})
    assert (config.checkpoint_dir, config.backup_dir) == (str(tmp_path), str(tmp_path / "b"))
    with pytest.raises(ValueError, match="frozen"):
        config.save_interval = 5


def test_a_misspelt_option_is_told_which_is_meant() -> None:
    """The error names the closest option."""
    misspelt: Any = {"max_checkpoint": 3}
    with pytest.raises(ConfigError, match=r"there is no such option \(did you mean max_checkpoints\?\)"):
        CheckpointConfig(**misspelt)


@pytest.mark.parametrize("place", ["runs", "./runs/", "file://runs", "~/runs", "/data/runs", "s3://bucket/runs"])
def test_a_configuration_means_the_same_folders_in_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Pickled in one working directory and read in another, it names the places of the first; the rest is as it was."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(tmp_path))
    config = CheckpointConfig(checkpoint_dir=place, backup_dir="copies", save_interval=3)
    handed_over = pickle.dumps(config)
    monkeypatch.chdir(there)
    found = pickle.loads(handed_over)
    expected = {"~/runs": tmp_path / "runs", "/data/runs": "/data/runs", "s3://bucket/runs": place}
    assert found.checkpoint_dir == str(expected.get(place, here / "runs"))
    assert (found.backup_dir, found.fallback_dir) == (str(here / "copies"), None)
    assert found.save_interval == 3
    assert "monitor_metric" not in found.model_fields_set
    assert config.checkpoint_dir == place


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda manager: pickle.loads(pickle.dumps(manager))])
def test_a_copy_of_a_manager_is_one_of_the_same_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copied: Callable[[CheckpointManager], CheckpointManager]
) -> None:
    """A working directory that has changed since does not make a run begin anew."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    config = CheckpointConfig(checkpoint_dir="store", backup_dir="copies", fallback_dir="reserve")
    manager = CheckpointManager(config, "run")
    monkeypatch.chdir(tmp_path / "elsewhere")
    manager.save_checkpoint(model=nn.Linear(1, 1), epoch=4, metrics={"val_loss": 1.0})
    found = copied(copied(manager))
    resumed = found.resume(nn.Linear(1, 1))
    assert resumed is not None
    assert resumed["epoch"] == 4
    assert repr(found) == repr(manager)
    assert found.backup_ids() == manager.backup_ids() != []
    assert found.list_stranded() == []
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert manager.config is config
