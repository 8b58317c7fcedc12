"""Odd state, in every format: it comes back to the bit, or is refused by its place before training begins."""

from __future__ import annotations

import enum
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR, AveragedModel

from ckpt_lib import CheckpointConfig, CheckpointManager, TrainingState
from ckpt_lib.errors import UnsupportedStateError
from ckpt_lib.formats import in_memory, trial
from ckpt_lib.state.sameness import first_difference
from tests.formats.every_format import EVERY_FORMAT, options_of
from tests.helpers import contents
from tests.manager.odd_states import CONVERTED, DENSE, REFUSED, SPECIAL, Phase, as_loaded, made, objects

pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta"),
    pytest.mark.filterwarnings("ignore:.*quantize"),
    pytest.mark.filterwarnings("ignore:.*nested tensors is in prototype"),
    pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental"),
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated"),
]


@pytest.fixture(params=EVERY_FORMAT)
def stored_format(request: pytest.FixtureRequest, npz_format: None) -> str:
    return str(request.param)


@pytest.fixture
def manager(stored_format: str, store_path: Path) -> CheckpointManager:
    config = CheckpointConfig(checkpoint_dir=str(store_path), backup_checkpoints=False, **options_of(stored_format))
    return CheckpointManager(config, "run")


def round_trip(manager: CheckpointManager, extra_state: dict[str, Any]) -> dict[str, Any]:
    """What a load gives back of a state that was saved in the background."""
    saved = str(manager.save_checkpoint_async(model=nn.Linear(1, 1), extra_state=extra_state, epoch=1).result())
    manager.close()
    assert manager.validate_checkpoint(saved)
    found: dict[str, Any] = manager.load_checkpoint(saved)["extra_state"]
    return found


def test_what_a_training_holds_comes_back(manager: CheckpointManager) -> None:
    """Each type of elements and each kind of dense tensor, to the bit; ``check`` says so, and writes nothing."""
    state = {name: made(make) for name, make in DENSE.items()}
    report = manager.check(model=nn.Linear(1, 1), extra_state=state)
    assert {conversion.stored for conversion in report.conversions} <= {"torch.Tensor"}  # of NumPy's generators
    assert not Path(manager.config.checkpoint_dir).exists()
    found = round_trip(manager, state)
    for name, value in state.items():
        if "NumPy" not in name:
            assert first_difference(found[name], value) is None, name
    found["shared storage"]["whole"][6] = 99
    assert found["shared storage"]["row"][0] == 99


@pytest.mark.parametrize("name", SPECIAL)
def test_special_tensors_come_back_or_are_refused(manager: CheckpointManager, stored_format: str, name: str) -> None:
    """The format ``torch`` gives each back as it was; another refuses it by its place, in a check as in a save."""
    state = {"tensor": made(SPECIAL[name])}
    if stored_format.startswith("torch"):
        manager.check(model=nn.Linear(1, 1), extra_state=state)
        assert first_difference(round_trip(manager, state)["tensor"], state["tensor"]) is None
        return
    for call in (manager.check, partial(manager.save_checkpoint, epoch=1)):
        with pytest.raises(UnsupportedStateError, match=r"extra_state\S*tensor") as refused:
            call(model=nn.Linear(1, 1), extra_state=state)
        assert refused.value.hint


def test_everything_that_cannot_be_stored_is_told_at_once(manager: CheckpointManager, store_path: Path) -> None:
    """One error names each place, and what to do; a save says the same, and neither writes a byte."""
    state = {name: made(make) for name, make in REFUSED.items()}
    parts: dict[str, Any] = {"model": nn.Linear(1, 1), "extra_state": {"fine": 1, "odd": state}}
    with pytest.raises(UnsupportedStateError) as refused:
        manager.check(**parts)
    assert len(refused.value.refusals) == len(REFUSED)
    for name, refusal in zip(REFUSED, refused.value.refusals, strict=True):
        assert f"extra_state['odd'][{name!r}]" in refusal.message
        assert str(refusal) in str(refused.value)
    with pytest.raises(UnsupportedStateError) as again:
        manager.save_checkpoint(**parts, epoch=1)
    assert str(again.value) == str(refused.value)
    assert not store_path.exists() or not contents(store_path)


def test_objects_come_back_as_plain_values(manager: CheckpointManager) -> None:
    """Dataclasses as dicts, members of enums as their values, paths as text, NumPy's as tensors and numbers: the report
    names each of them.
    """
    report = manager.check(model=nn.Linear(1, 1), extra_state=objects())
    assert {str(conversion) for conversion in report.conversions} == CONVERTED
    assert first_difference(round_trip(manager, objects()), as_loaded()) is None


def test_the_report_says_how_much_would_be_stored(manager: CheckpointManager, stored_format: str) -> None:
    """The size is that of the save, unless it is compressed."""
    model = nn.Linear(64, 64)
    report = manager.check(model=model, extra_state={"more": torch.ones(10, dtype=torch.int16)})
    assert report.format == stored_format
    saved = manager.save_checkpoint(model=model, extra_state={"more": torch.ones(10, dtype=torch.int16)}, epoch=1)
    assert report.tensors >= 3  # the generators' as well
    assert report.tensor_bytes >= 4 * 65 * 64 + 20
    size_bytes = manager.get_checkpoint(str(saved)).file_size
    assert size_bytes <= report.size_bytes + 100
    assert "+" in stored_format or report.size_bytes <= 1.1 * size_bytes + 4096


class _Odd:
    """An object whose state holds a member of an enum."""

    def state_dict(self) -> dict[str, Any]:
        return {"phase": Phase.FINE}

    def load_state_dict(self, state: Any) -> None: ...


def test_the_state_of_an_object_is_not_converted(manager: CheckpointManager) -> None:
    """It would get back what it did not give, and only fail much later."""
    with pytest.raises(UnsupportedStateError, match=r"others\['odd'\]\['phase'\]"):
        manager.check(TrainingState(model=nn.Linear(1, 1), others={"odd": _Odd()}))


class _Twins(enum.Enum):
    A = "a"


@pytest.mark.parametrize("key", [_Twins.A, Path("a")], ids=["enum", "path"])
def test_keys_that_would_become_one_are_refused(manager: CheckpointManager, key: Any) -> None:
    """Or one of two values would be lost."""
    with pytest.raises(UnsupportedStateError, match=r"extra_state\['x'\] has two keys"):
        manager.check(model=nn.Linear(1, 1), extra_state={"x": {key: 1, "a": 2}})


def test_averaged_models_and_scalers_go_on(manager: CheckpointManager) -> None:
    """Averaged weights with their count, a gradient scaler, and schedulers of every kind of state."""

    def build(seed: int) -> TrainingState:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        warm_up = lr_scheduler.LinearLR(optimizer)
        then = lr_scheduler.CosineAnnealingLR(optimizer, 5)
        scheduler = {
            "chain": lr_scheduler.SequentialLR(optimizer, [warm_up, then], [2]),
            "plateau": lr_scheduler.ReduceLROnPlateau(optimizer),
            "one cycle": lr_scheduler.OneCycleLR(optimizer, 0.1, 9),
            "averaged": SWALR(optimizer, 0.05),
        }
        scheduler = {name.replace(" ", "_"): item for name, item in scheduler.items()}
        others: dict[str, Any] = {"ema": AveragedModel(model, use_buffers=True), "scaler": torch.amp.GradScaler("cpu")}
        return TrainingState(model=model, optimizer=optimizer, scheduler=scheduler, others=others)

    state, fresh = build(0), build(1)
    for _ in range(3):
        state.model(torch.randn(4, 3)).sum().backward()  # type: ignore[operator, misc]
        state.optimizer.step()  # type: ignore[union-attr]
        state.others["ema"].update_parameters(state.model)  # type: ignore[attr-defined]
    manager.check(state)
    manager.save_checkpoint(state, epoch=1)
    assert manager.resume(fresh) is not None
    assert first_difference(fresh.capture(), state.capture()) is None


class _Lossy:
    """A format that gives one number back as another."""

    name = "lossy"

    def __init__(self, whole: Any) -> None:
        self._whole = whole

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)

    def read(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        found: dict[str, Any] = self._whole.read(*arguments, **options)
        found["extra_state"]["number"] += 1
        return found


def test_a_format_that_alters_a_value_is_found_out(manager: CheckpointManager) -> None:
    """Whatever it does to which value: the state is read back, and compared to the bit."""
    whole = manager._saver._format
    prepared = whole.prepare({"extra_state": {"number": 1, "other": torch.ones(2)}})
    trial.check_read_back(whole, prepared)
    with pytest.raises(UnsupportedStateError, match=r"extra_state\.number"):
        trial.check_read_back(_Lossy(whole), prepared)


def test_a_large_state_is_tried_out_in_little_memory(
    manager: CheckpointManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what exceeds the limit, all but the elements is tried out."""
    monkeypatch.setattr(trial, "MAX_TRIAL_BYTES", 100)
    sizes: list[int] = []
    encoded = in_memory.encoded

    def note(*arguments: Any) -> Any:
        files = encoded(*arguments)
        sizes.append(sum(map(len, files.values())))
        return files

    monkeypatch.setattr(trial, "encoded", note)
    report = manager.check(model=nn.Linear(1, 1), extra_state={"large": torch.rand(1_000_000)})
    assert report.tensor_bytes > 4_000_000
    assert sizes[0] < 100_000
