"""What the names in checkpoints of other programs stand for."""

from __future__ import annotations

import argparse
import ctypes
import enum
import io
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ckpt_lib.errors import ConfigError
from ckpt_lib.foreign.mapping import MappedContents, to_payload
from ckpt_lib.foreign.torch_files import contents_of
from ckpt_lib.stream import VerifiedFile
from tests.foreign.files import saved

OPTIMIZER = {"state": {0: {"step": 1, "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
WEIGHTS = {"fc.weight": torch.ones(2)}


class Color(enum.Enum):
    """A choice of a configuration."""

    RED = "red"


class Settings:
    """A configuration with a class of its own."""

    def __init__(self) -> None:
        self.width = 3
        self.color = Color.RED


def mapped(contents: Any, key_map: dict[str, str] | None = None) -> MappedContents:
    """What becomes of a file of torch.save."""
    return to_payload(contents_of(VerifiedFile(io.BytesIO(saved(contents)), None)).value, key_map)


@pytest.mark.parametrize("model", ["state_dict", "model", "model_state_dict", "net", "module"])
@pytest.mark.parametrize("optimizer", ["optimizer", "opt", "optimizer_state_dict"])
def test_usual_names_are_known(model: str, optimizer: str) -> None:
    """Weights, optimizer, scheduler, scaler and average are found; nothing is left."""
    contents = {
        model: WEIGHTS,
        optimizer: OPTIMIZER,
        "lr_scheduler": {"last_epoch": 3},
        "scaler": {"scale": 2.0},
        "model_ema": WEIGHTS,
        "epoch": 3,
        "global_step": 40,
    }
    found = mapped(contents)
    assert found.payload is not None
    assert set(found.payload) == {"model_state_dict", "optimizer_state_dict", "scheduler_state_dict", "others"}
    assert set(found.payload["others"]) == {"scaler", "model_ema"}
    assert (found.facts.epoch, found.facts.step, found.left_out, found.obstacle) == (3, 40, (), None)


def test_what_has_no_name_is_extra() -> None:
    """Plain values and tensors without a known name are kept under their own names; other objects are named."""
    found = mapped({"model": WEIGHTS, "arch": "resnet", "seen": [1, {"a": torch.ones(1)}], "trainer": Settings()})
    assert found.payload is not None
    assert list(found.payload["extra_state"]) == ["arch", "seen"]
    assert len(found.left_out) == 1
    assert "trainer" in found.left_out[0]
    assert "Settings" in found.left_out[0]


def test_key_map_decides() -> None:
    """Names that nobody knows are mapped on request; several of one target become states under their names."""
    contents = {
        "netG": WEIGHTS,
        "netD": {"fc.weight": torch.zeros(1)},
        "optG": OPTIMIZER,
        "t": 5,
        "inner": {"avg": WEIGHTS},
    }
    assert "key_map" in (mapped(contents).obstacle or "")
    key_map = {"netG": "model", "netD": "model", "optG": "optimizer", "t": "epoch", "inner.avg": "others"}
    found = mapped(contents, key_map)
    assert found.payload is not None
    assert list(found.payload["model_state_dict"]) == ["netG", "netD"]
    assert list(found.payload["optimizer_state_dict"]) == ["state", "param_groups"]
    assert list(found.payload["others"]) == ["inner.avg"]
    assert found.facts.epoch == 5


def test_key_map_comes_before_usual_names() -> None:
    """Where key_map names the model, an entry of a usual name is only extra."""
    found = mapped({"model": {"old": torch.ones(1)}, "ema": WEIGHTS}, {"ema": "model"})
    assert found.payload is not None
    assert list(found.payload["model_state_dict"]) == ["fc.weight"]
    assert list(found.payload["extra_state"]["model"]) == ["old"]


def test_a_wrong_key_map_is_refused() -> None:
    """A misspelt name or target is an error with a suggestion, not a checkpoint without it."""
    with pytest.raises(ConfigError, match="state_dict"):
        mapped({"state_dict": WEIGHTS}, {"state_dct": "model"})
    with pytest.raises(ConfigError, match="optimizer"):
        mapped({"state_dict": WEIGHTS}, {"state_dict": "optimiser"})


def test_facts_are_found(tmp_path: Path) -> None:
    """Metrics, configuration and moment, in the types in which scripts keep them."""
    contents = {
        "model": WEIGHTS,
        "epoch": 2.0,
        "iteration": 7,
        "best_acc1": np.float64(0.5),
        "val_loss": 0.25,
        "args": argparse.Namespace(out=tmp_path, color=Color.RED, inner={"lr": 0.1}),
        "date": "2026-01-02T03:04:05",
    }
    facts = mapped(contents).facts
    assert (facts.epoch, facts.step) == (2, 7)
    assert facts.metrics == {"best_acc1": 0.5, "val_loss": 0.25}
    assert facts.config == {"out": str(tmp_path), "inner": {"lr": 0.1}}
    assert facts.saved_at is not None
    assert facts.saved_at.isoformat() == "2026-01-02T03:04:05+00:00"


def test_a_configuration_of_any_class_is_its_attributes() -> None:
    """A configuration with a class of its own is its attributes; tensors in it are kept beside it."""
    found = mapped({"model": WEIGHTS, "cfg": Settings(), "args": {"lr": 1, "weights": torch.ones(2)}})
    assert found.facts.config == {"cfg": {"width": 3}, "args": {"lr": 1}}
    assert found.payload is not None
    assert list(found.payload["extra_state"]["args"]) == ["lr", "weights"]
    assert "cfg.color" in found.left_out[0]
    assert "args.weights" in found.left_out[1]


class _Library:
    """Is loaded when it is unpickled, from a path: a call that looks like a member of an enum."""

    def __reduce__(self) -> tuple[Any, ...]:
        return ctypes.CDLL, ("evil.so",)


@pytest.mark.parametrize(
    ("value", "class_name"),
    [(Color.RED, "Color"), (Decimal("0.1"), "decimal.Decimal"), (_Library(), "ctypes.CDLL")],
    ids=["enum", "decimal", "call"],
)
def test_what_a_class_was_called_with_is_not_its_value(value: Any, class_name: str) -> None:
    """A class and one plain value may be an enum, a number or a call: it is left out, and its class is named."""
    found = mapped({"model": WEIGHTS, "extra": {"a": value, "b": 1}, "args": {"c": value, "d": 2}})
    assert found.payload is not None
    assert found.payload["extra_state"] == {"extra": {"b": 1}}
    assert found.facts.config == {"d": 2}
    for place in ("extra.a", "args.c"):
        assert any(place in sentence and class_name in sentence for sentence in found.left_out)


def test_what_key_map_calls_extra_stays_extra() -> None:
    """An entry of a usual name that key_map gives to extra_state is taken for nothing else."""
    contents = {"model": WEIGHTS, "ema": WEIGHTS, "optimizer": OPTIMIZER, "epoch": 3}
    found = mapped(contents, dict.fromkeys(("ema", "optimizer", "epoch"), "extra_state"))
    assert found.payload is not None
    assert set(found.payload["extra_state"]) == {"ema", "optimizer", "epoch"}
    assert set(found.payload) == {"model_state_dict", "extra_state"}
    assert found.facts.epoch is None


@pytest.mark.parametrize("target", ["epoch", "step"])
@pytest.mark.parametrize("value", ["three", -1, 0.5, True, None])
def test_what_key_map_calls_a_count_is_one(target: str, value: Any) -> None:
    """Another count is not taken for one that is none, and no 0 stands for it."""
    with pytest.raises(ConfigError, match="no count"):
        mapped({"model": WEIGHTS, "when": value, "epoch": 7, "step": 70}, {"when": target})


@pytest.mark.parametrize("target", ["epoch", "step"])
def test_a_checkpoint_has_one_count_of_a_kind(target: str) -> None:
    """Of two names neither is taken silently: the error says both. One that is given comes before known names."""
    contents = {"model": WEIGHTS, "epoch": 1, "current_epoch": 7, "step": 1, "updates": 7, "mine": 9}
    name = {"epoch": "current_epoch", "step": "updates"}[target]
    with pytest.raises(ConfigError, match=f"more than one {target}.*'{name}' and 'mine'"):
        mapped(contents, {name: target, "mine": target})
    assert getattr(mapped(contents, {name: target}).facts, target) == 7


def test_a_configuration_that_is_none_is_told() -> None:
    """What key_map calls the configuration and is no dict is left out with a sentence."""
    found = mapped({"model": WEIGHTS, "name": "x"}, {"name": "config"})
    assert found.facts.config == {}
    assert "name" in found.left_out[0]


def test_opt_may_be_options() -> None:
    """``opt`` is an optimizer in some programs and a configuration in others: what it holds tells which."""
    assert mapped({"model": WEIGHTS, "opt": {"lr": 0.1}}).facts.config == {"lr": 0.1}
    found = mapped({"model": WEIGHTS, "opt": OPTIMIZER})
    assert found.payload is not None
    assert "optimizer_state_dict" in found.payload


def test_an_epoch_below_zero_is_none() -> None:
    """Programs that write -1 into a stripped checkpoint do not say in which epoch it was."""
    found = mapped({"model": WEIGHTS, "epoch": -1})
    assert found.facts.epoch is None
    assert found.payload is not None
    assert found.payload["extra_state"] == {"epoch": -1}


def test_averaged_weights_stand_for_missing_ones() -> None:
    """A checkpoint that has only averaged weights is one of these, and says so."""
    found = mapped({"model": None, "ema": WEIGHTS})
    assert found.payload is not None
    assert list(found.payload["model_state_dict"]) == ["fc.weight"]
    assert "averaged" in found.left_out[0]


def test_a_model_without_weights_is_an_obstacle() -> None:
    """An object of which no weights are stored is named, with its class."""
    found = mapped({"model": Settings(), "epoch": 1})
    assert found.payload is None
    assert "Settings" in (found.obstacle or "")


def test_an_optimizer_alone_is_one() -> None:
    """A file of an optimizer's state is the optimizer of a payload."""
    found = mapped(OPTIMIZER)
    assert found.payload is not None
    assert list(found.payload) == ["optimizer_state_dict"]


@pytest.mark.parametrize("count", [1, 2])
def test_lightnings_layout(count: int) -> None:
    """Optimizers and schedulers are lists, of which one is itself and several are named by their number."""
    contents = {
        "epoch": 1,
        "global_step": 20,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": WEIGHTS,
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint{}": {"best_model_score": torch.tensor(0.5), "dirpath": "/runs"}},
        "optimizer_states": [OPTIMIZER] * count,
        "lr_schedulers": [{"last_epoch": 1}] * count,
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 0.1},
    }
    found = mapped(contents)
    assert found.payload is not None
    optimizers = found.payload["optimizer_state_dict"]
    assert list(optimizers) == (["state", "param_groups"] if count == 1 else ["0", "1"])
    assert list(found.payload["scheduler_state_dict"]) == (["last_epoch"] if count == 1 else ["0", "1"])
    assert set(found.payload["extra_state"]) == {"callbacks", "loops", "hparams_name", "pytorch-lightning_version"}
    assert (found.facts.writer, found.facts.epoch, found.facts.step) == ("lightning 2.6.6", 1, 20)
    assert found.facts.config == {"lr": 0.1}


@pytest.mark.parametrize(
    "contents",
    [
        {"ema": {"a": torch.zeros(2)}, "net_sd": WEIGHTS, "optimizer": OPTIMIZER},
        {"teacher": WEIGHTS, "student": WEIGHTS, "ema": WEIGHTS},
        {"weights": {"cls": torch.ones(1)}, "generator": {"fc.weight": torch.ones(9)}},
    ],
)
def test_one_of_several_models_is_not_guessed(contents: dict[str, Any]) -> None:
    """Averaged weights are not the model where others are there, nor are fewer weights than others have."""
    found = mapped(contents)
    assert found.payload is None
    assert "key_map" in (found.obstacle or "")


def test_a_dict_of_settings_is_no_model() -> None:
    """A tensor among plain values does not make a dict of a usual name the weights of a model."""
    for contents in (
        {"model": {"name": "x", "mean": torch.ones(1)}, "state_dict": WEIGHTS},
        {"params": {"lr": 0.1, "class_weights": torch.ones(1)}, "net": WEIGHTS},
    ):
        found = mapped(contents)
        assert found.payload is not None
        assert list(found.payload["model_state_dict"]) == ["fc.weight"]


def test_several_optimizers_are_found_or_named() -> None:
    """A list of them becomes states by number; those without a usual name are kept, and a sentence says so."""
    found = mapped({"model": WEIGHTS, "optimizers": [OPTIMIZER, OPTIMIZER]})
    assert found.payload is not None
    assert list(found.payload["optimizer_state_dict"]) == ["0", "1"]
    found = mapped({"model": WEIGHTS, "optimizer_G": OPTIMIZER, "optimizer_D": OPTIMIZER})
    assert found.payload is not None
    assert list(found.payload["extra_state"]) == ["optimizer_G", "optimizer_D"]
    assert any("optimizer_G" in sentence and "key_map" in sentence for sentence in found.left_out)


def test_numbers_in_tensors_are_facts_and_plans_are_none() -> None:
    """Scripts keep a count or a metric as a tensor; ``epochs`` and ``steps`` say how many there will be."""
    found = mapped(
        {
            "model": WEIGHTS,
            "epoch": torch.tensor(7),
            "best_acc1": torch.tensor(0.5),
            "metrics": {"f1": torch.tensor(0.25)},
            "epochs": 100,
            "steps": 10_000,
        }
    )
    assert (found.facts.epoch, found.facts.step) == (7, None)
    assert found.facts.metrics == {"best_acc1": 0.5, "f1": 0.25}
    assert found.payload is not None
    assert found.payload["extra_state"] == {"epochs": 100, "steps": 10_000}
