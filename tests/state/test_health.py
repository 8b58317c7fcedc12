"""The health gate: NaN and infinities are found, told of, kept, and never taken for good."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ckpt_lib import CheckpointManager
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.core.monitor import Monitor
from ckpt_lib.errors import CheckpointNotFoundError, NoValidCheckpointError
from ckpt_lib.policies.retention import KeepNewest
from ckpt_lib.policies.saving import OnImprovement
from ckpt_lib.state.health import HealthCheck
from tests.helpers import MakeManager, Parts, build, flip_bit, ids, payload_path, save, train
from tests.maintenance.records import manifest_in

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.float8_e5m2]
BAD = [math.nan, math.inf, -math.inf]


def fault_in(tensor: Any, *, buffers: tuple[str, ...] = (), metrics: dict[str, Any] | None = None) -> str | None:
    check = HealthCheck(Monitor(), buffers)
    return check.find_fault({"model_state_dict": {"layer.weight": tensor}}, metrics or {})


def poisoned(value: float = math.nan) -> nn.Module:
    """A model with one bad number, which is in the middle of its weights."""
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight[0, 1] = value
    return model


# --- what is found ---


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("bad", BAD)
def test_one_bad_number_is_found_wherever_it_lies(dtype: torch.dtype, bad: float) -> None:
    """First, last or between, in every type that has NaN and infinities."""
    for position in (0, 517, 999):
        numbers = torch.linspace(-4, 4, 1000, dtype=torch.float32)
        assert fault_in(numbers.to(dtype)) is None
        numbers[position] = bad
        assert "layer.weight" in (fault_in(numbers.to(dtype)) or "")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e8m0fnu], ids=str)
def test_types_without_infinities_have_a_nan(dtype: torch.dtype) -> None:
    """NaN is found in types that have no infinity."""
    numbers = torch.ones(1000)
    assert fault_in(numbers.to(dtype)) is None
    numbers[517] = math.nan
    assert fault_in(numbers.to(dtype)) is not None


@given(
    st.lists(st.floats(width=32), max_size=40),
    st.sampled_from([torch.float32, torch.float64]),
    st.integers(min_value=1, max_value=3),
)
def test_the_verdict_is_that_of_isfinite(values: list[float], dtype: torch.dtype, step: int) -> None:
    """For any numbers, the largest finite ones among them, seen through any stride."""
    tensor = torch.tensor(values, dtype=dtype)[::step]
    assert (fault_in(tensor) is None) == bool(torch.isfinite(tensor).all())


LAYOUTS: dict[str, Callable[[float], torch.Tensor]] = {
    "coo": lambda number: torch.tensor([1.0, number]).to_sparse(),
    "csr": lambda number: torch.diag(torch.tensor([1.0, number])).to_sparse_csr(),
    "csc": lambda number: torch.diag(torch.tensor([1.0, number])).to_sparse_csc(),
    "mkldnn": lambda number: torch.full((2, 2), number).to_mkldnn(),
    "conjugate": lambda number: torch.tensor([complex(1, number)]).conj(),
    "expanded": lambda number: torch.tensor([[number]]).expand(2, 1000),
    "nested": lambda number: nested(number, torch.strided),
    "nested and transposed": lambda number: nested(number, torch.strided).transpose(1, 2),
    "jagged": lambda number: nested(number, torch.jagged),
    "jagged and transposed": lambda number: nested(number, torch.jagged).transpose(1, 2),
}


def nested(number: float, layout: torch.layout) -> torch.Tensor:
    return torch.nested.nested_tensor([torch.ones(2, 3), torch.full((3, 3), number)], layout=layout)


@pytest.mark.filterwarnings("ignore:Sparse CS. tensor support", "ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("make", LAYOUTS.values(), ids=LAYOUTS)
def test_bad_numbers_are_found_in_every_layout(make: Callable[[float], torch.Tensor]) -> None:
    """Of a sparse tensor, the stored values are checked."""
    assert fault_in(make(1.0)) is None
    assert fault_in(make(math.nan)) is not None


@pytest.mark.parametrize(
    "whole",
    [
        *(torch.arange(5), torch.tensor([True]), torch.empty(0), torch.empty(0, dtype=torch.float8_e5m2)),
        torch.zeros(3, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
    ],
    ids=lambda tensor: f"{tensor.dtype} {tensor.shape}",
)
def test_what_holds_no_bad_number_passes(whole: torch.Tensor) -> None:
    """Empty tensors, and types that have neither NaN nor infinity, are sound."""
    assert fault_in(whole) is None


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_a_model_with_nested_tensors_is_saved_and_checked(make_manager: MakeManager, layout: torch.layout) -> None:
    """What is found in a nested buffer marks the checkpoint."""
    model = torch.nn.Module()
    model.register_buffer("nested", nested(math.nan, layout))
    manager = make_manager(health_check=True)
    assert not manager.get_checkpoint(str(manager.save_checkpoint(model=model, epoch=1))).healthy


def test_tensors_are_found_in_whatever_holds_them() -> None:
    """Dicts, lists and tuples, in model and optimizer; extra state and the scheduler are the caller's own affair."""
    bad = torch.tensor([math.nan])
    check = HealthCheck(Monitor())
    payload = {
        "model_state_dict": {"list": [torch.ones(1), bad], "plain": math.nan},
        "optimizer_state_dict": {"state": {0: {"exp_avg": (bad,)}}},
        "scheduler_state_dict": {"x": bad},
        "extra_state": {"x": bad},
    }
    found = "NaN or infinity in model_state_dict.list.1, optimizer_state_dict.state.0.exp_avg.0"
    assert check.find_fault(payload, {}) == found
    assert check.find_fault({"model_state_dict": {}, "optimizer_state_dict": None}, {}) is None


def test_a_few_names_are_told_and_the_others_counted() -> None:
    """A diverged model has NaN everywhere; names that cannot be shown are escaped and cut."""
    names = ["a\nb", "c" * 500, "d", "e", "f"]
    fault = HealthCheck(Monitor()).find_fault(
        {"model_state_dict": {name: torch.tensor(math.nan) for name in names}}, {}
    )
    assert fault is not None
    assert "\\n" in fault
    assert fault.isprintable()
    assert fault.endswith("model_state_dict.d and 2 more")
    assert len(fault) < 400


@pytest.mark.parametrize(("value", "is_sound"), [(-math.inf, True), (math.inf, False), (math.nan, False)])
def test_a_mask_in_a_buffer_is_no_fault(value: float, is_sound: bool) -> None:
    """-Infinity is healthy in a buffer, as in attention masks, and unhealthy in a parameter."""
    tensor = torch.tensor([0.0, value])
    assert (fault_in(tensor, buffers=("layer.weight",)) is None) == is_sound
    assert fault_in(tensor) is not None


def test_buffers_are_known_from_the_model(make_manager: MakeManager) -> None:
    """A model with a mask is healthy, and one whose running variance overflowed is not."""
    manager = make_manager(health_check=True)
    norm = nn.BatchNorm1d(2)
    model = nn.Sequential(nn.Linear(2, 2), norm)
    model.register_buffer("mask", torch.full((2, 2), -math.inf).triu(1))
    first = manager.save_checkpoint(model=model, epoch=1)
    assert first is not None
    assert manager.get_checkpoint(first).unhealthy is None
    assert norm.running_var is not None
    norm.running_var[0] = math.inf
    second = manager.save_checkpoint(model=model, epoch=2)
    assert second is not None
    assert "model_state_dict.1.running_var" in str(manager.get_checkpoint(second).unhealthy)


def test_a_mask_that_layers_share_is_a_buffer_by_each_of_its_names(make_manager: MakeManager) -> None:
    """A buffer that modules share is recognised under each of its names."""
    mask, layers = torch.full((2, 2), -math.inf).triu(1), nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    for layer in layers:
        layer.register_buffer("mask", mask)
    manager = make_manager(health_check=True)
    assert manager.get_checkpoint(str(manager.save_checkpoint(model=layers, epoch=1))).unhealthy is None


@pytest.mark.parametrize("value", BAD)
def test_a_monitored_metric_that_is_not_finite(make_manager: MakeManager, value: float) -> None:
    """Only the monitored metric is checked, and the reason names it."""
    manager = make_manager(health_check=True, monitor_metric="acc", monitor_mode="max")
    sound = save(manager, 1, value, metrics={"val_loss": value, "acc": 0.5})
    marked = save(manager, 2, value, metrics={"val_loss": 0.1, "acc": value})
    assert [manager.get_checkpoint(item).healthy for item in (sound, marked)] == [True, False]
    assert manager.get_checkpoint(marked).unhealthy == f"the monitored metric 'acc' is {value}"


@pytest.mark.parametrize("metrics", [{}, {"val_loss": None}, {"val_loss": "text"}, {"val_loss": 3}])
def test_a_monitored_metric_that_is_no_float_says_nothing(make_manager: MakeManager, metrics: dict[str, Any]) -> None:
    """A monitored metric that is missing, text or a whole number is healthy."""
    manager = make_manager(health_check=True)
    assert manager.get_checkpoint(save(manager, 1, metrics=metrics)).healthy


# --- what follows from it ---


def test_without_the_option_nothing_is_looked_at(manager: CheckpointManager) -> None:
    """Without the option, nothing is checked or marked."""
    found = manager.save_checkpoint(model=poisoned(), epoch=1, metrics={"val_loss": math.nan})
    assert found is not None
    assert manager.get_checkpoint(found).unhealthy is None
    assert manager.resume() is not None


@pytest.mark.parametrize("in_background", [False, True])
def test_an_unhealthy_checkpoint_is_kept_and_never_the_best(make_manager: MakeManager, in_background: bool) -> None:
    """It is saved, listed, intact and loaded on request, with the reason in its manifest."""
    manager = make_manager(health_check=True)
    good = save(manager, 1, 0.5)
    arguments: dict[str, Any] = {"model": poisoned(), "epoch": 2, "metrics": {"val_loss": 0.1}}
    if in_background:
        bad = manager.save_checkpoint_async(**arguments).result()
        manager.flush()
    else:
        bad = manager.save_checkpoint(**arguments)
    assert bad is not None
    assert ids(manager) == [good, bad]
    assert manager.validate_checkpoint(bad)
    assert manager.get_checkpoint(bad).unhealthy == "NaN or infinity in model_state_dict.weight"
    stored = payload_path(manager, bad).with_suffix(".json")
    assert manifest_in(stored).unhealthy == manager.get_checkpoint(bad).unhealthy
    best, latest = manager.get_best_checkpoint(), manager.get_latest_checkpoint()
    assert best is not None
    assert latest is not None
    assert (best.checkpoint_id, latest.checkpoint_id) == (good, bad)
    assert manager.load_checkpoint("latest")["checkpoint_id"] == bad
    assert manager.load_checkpoint("best")["checkpoint_id"] == good


def test_the_background_check_is_of_the_copy(make_manager: MakeManager, parts: Parts) -> None:
    """What training does after the call neither marks a sound state nor hides a bad one."""
    manager = make_manager(health_check=True)
    train(parts, [1])
    optimizer, weight = parts.optimizer, next(iter(parts.model.parameters()))

    def poison(value: float) -> None:
        with torch.no_grad():
            weight[0, 0] = value

    saved = []
    for epoch, (at_the_call, afterwards) in enumerate([(0.5, math.nan), (math.nan, 0.5)], start=1):
        poison(at_the_call)
        handle = manager.save_checkpoint_async(model=parts.model, optimizer=optimizer, epoch=epoch)
        handle.wait_until_copied()
        poison(afterwards)
        saved.append(handle.result())
    assert [manager.get_checkpoint(str(item)).healthy for item in saved] == [True, False]


def test_optimizer_state_is_looked_at(make_manager: MakeManager, parts: Parts) -> None:
    """NaN in the optimizer's state alone makes a checkpoint unhealthy."""
    manager = make_manager(health_check=True)
    train(parts, [1])
    next(iter(parts.optimizer.state.values()))["exp_avg_sq"][0] = math.inf
    found = manager.save_checkpoint(**parts.kwargs(), epoch=1)
    assert found is not None
    assert "optimizer_state_dict.state.0.exp_avg_sq" in str(manager.get_checkpoint(found).unhealthy)


def test_a_mark_is_logged(make_manager: MakeManager, caplog: pytest.LogCaptureFixture) -> None:
    """At the save, when someone may still look at the run."""
    with caplog.at_level(logging.WARNING, "ckpt_lib"):
        found = make_manager(health_check=True).save_checkpoint(model=poisoned(), epoch=1)
    assert f"{found} is unhealthy: NaN or infinity in model_state_dict.weight" in caplog.text


def test_resume_passes_over_unhealthy_ones(make_manager: MakeManager) -> None:
    """Resuming skips unhealthy checkpoints, and logs that as for damaged ones."""
    manager = make_manager(health_check=True, backup_checkpoints=False)
    good = save(manager, 1)
    damaged = save(manager, 2)
    bad = manager.save_checkpoint(model=poisoned(), epoch=3)
    flip_bit(payload_path(manager, damaged), 100)
    resumed = make_manager().resume()
    assert resumed is not None
    assert resumed["checkpoint_id"] == good
    assert [item["checkpoint_id"] for item in resumed["passed_over"]] == [bad, damaged]
    assert resumed["passed_over"][0]["reason"] == "unhealthy: NaN or infinity in model_state_dict.weight"


def test_resume_does_not_begin_anew_when_only_unhealthy_ones_are_left(make_manager: MakeManager) -> None:
    """The error tells how to take the newest of them on purpose, and that works."""
    manager = make_manager(health_check=True)
    manager.save_checkpoint(model=poisoned(), epoch=1)
    newest = manager.save_checkpoint(model=poisoned(), epoch=2)
    with pytest.raises(NoValidCheckpointError, match="NaN or infinity") as caught:
        manager.resume()
    assert f"load_checkpoint({newest!r})" in str(caught.value.hint)
    assert manager.load_checkpoint(str(newest), model=nn.Linear(2, 1))["epoch"] == 2


def test_an_unhealthy_one_is_nothing_to_be_measured_by(make_manager: MakeManager) -> None:
    """A worse but sound state is an improvement on it, whether that one is committed or still under way."""
    manager = make_manager(health_check=True, save_best_only=True)
    assert manager.save_checkpoint(model=poisoned(), epoch=1, metrics={"val_loss": 0.1})
    assert save(manager, 2, 0.5)
    assert manager.save_checkpoint(model=nn.Linear(2, 1), epoch=3, metrics={"val_loss": 0.6}) is None
    assert manager.save_checkpoint(model=nn.Linear(2, 1), epoch=4, metrics={"val_loss": math.nan}) is None
    manager.save_checkpoint_async(model=poisoned(), epoch=5, metrics={"val_loss": 0.2})
    assert manager.save_checkpoint_async(model=nn.Linear(2, 1), epoch=6, metrics={"val_loss": 0.4}).result()
    manager.flush()


def test_policies_see_the_mark(make_manager: MakeManager) -> None:
    """A custom save policy can read whether checkpoints are healthy."""
    seen: list[tuple[bool, ...]] = []

    class Watching(OnImprovement):
        def should_save(self, context: Any) -> bool:
            seen.append(tuple(record.healthy for record in context.saved))
            return True

    manager = CheckpointManager(make_manager(health_check=True).config, "run", save_policy=Watching())
    manager.save_checkpoint(model=poisoned(), epoch=1)
    save(manager, 2)
    save(manager, 3)
    assert seen == [(), (False,), (False, True)]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_retention_keeps_the_last_healthy_one(make_manager: MakeManager, count: int) -> None:
    """A run that diverged goes on saving; what it can be resumed from stays, and the newest of the others too."""
    options: dict[str, Any] = {"health_check": True, "max_checkpoints": count}
    manager = make_manager(**options)
    good = save(manager, 1, 0.5, metrics={})
    for epoch in range(2, 7):
        manager.save_checkpoint(model=poisoned(), epoch=epoch)
    assert good in ids(manager)
    CheckpointManager(manager.config, "run", retention_policy=KeepNewest(count=count)).cleanup_checkpoints()
    resumed = make_manager().resume()
    assert resumed is not None
    assert resumed["checkpoint_id"] == good


def test_a_damaged_healthy_one_is_not_the_last_healthy_one(make_manager: MakeManager) -> None:
    """The newest healthy one is read before older ones go, though a newer, unhealthy one is whole."""
    manager = make_manager(health_check=True, backup_checkpoints=False)
    good, damaged = save(manager, 1, metrics={}), save(manager, 2, metrics={})
    manager.save_checkpoint(model=poisoned(), epoch=3)
    flip_bit(payload_path(manager, damaged), 100)
    strict = make_manager(health_check=True, backup_checkpoints=False, max_checkpoints=0)
    strict.save_checkpoint(model=poisoned(), epoch=4)
    assert good in ids(strict)
    resumed = make_manager().resume()
    assert resumed is not None
    assert resumed["checkpoint_id"] == good


def test_there_may_be_no_best(make_manager: MakeManager) -> None:
    """Without a healthy checkpoint there is no best one."""
    manager = make_manager(health_check=True)
    manager.save_checkpoint(model=poisoned(), epoch=1, metrics={"val_loss": 0.1})
    assert manager.get_best_checkpoint() is None
    with pytest.raises(CheckpointNotFoundError, match="healthy"):
        manager.load_checkpoint("best")


def test_copies_keep_the_mark(make_manager: MakeManager, tmp_path: Any) -> None:
    """In the backup, in an export, and in what is imported from that."""
    manager = make_manager(health_check=True)
    bad = manager.save_checkpoint(model=poisoned(), epoch=1)
    assert bad is not None
    assert [item.unhealthy is None for item in manager.list_backups()] == [False]
    exported = manager.export_checkpoint(bad, tmp_path / "out")
    other = make_manager("other")
    assert not other.get_checkpoint(other.import_checkpoint(exported)).healthy


def test_a_manifest_of_before_is_healthy(manager: CheckpointManager) -> None:
    """A manifest without the field counts as healthy."""
    manifest = manifest_in(payload_path(manager, save(manager, 1)).with_suffix(".json"))
    fields = manifest.model_dump(mode="json", exclude={"unhealthy"})
    assert Manifest.model_validate(fields).healthy


def test_a_model_that_is_no_module_is_checked(make_manager: MakeManager) -> None:
    """Anything with a ``state_dict`` can be saved."""

    class Plain:
        def state_dict(self) -> dict[str, Any]:
            return {"w": torch.tensor([-math.inf])}

        def load_state_dict(self, state: Any) -> None: ...

    manager = make_manager(health_check=True)
    found = manager.save_checkpoint(model=Plain(), epoch=1)
    assert not manager.get_checkpoint(str(found)).healthy


def test_a_real_run_is_healthy(make_manager: MakeManager) -> None:
    """Nothing is marked where nothing is wrong."""
    manager = make_manager(health_check=True)
    parts = build()
    for epoch in range(1, 4):
        train(parts, [epoch])
        manager.save_checkpoint(**parts.kwargs(), epoch=epoch, metrics={"val_loss": 1 / epoch})
    assert all(item.healthy for item in manager.list_checkpoints())
    assert manager.resume(**parts.kwargs()) is not None
