"""What torch takes as its default device and default type has no effect on what is saved, checked and loaded."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._device import _device_constructors

from ckpt_lib import CheckpointManager
from tests.helpers import MakeManager, Parts, build, fingerprint, flip_bit, payload_path, train

PACKAGE = Path(__file__).parents[2] / "ckpt_lib"


@contextmanager
def default_device() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def device_context() -> Iterator[None]:
    with torch.device("meta"):
        yield


@contextmanager
def default_type() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


DEFAULTS = [default_device, device_context, default_type]


@pytest.fixture(params=DEFAULTS, ids=lambda default: default.__name__)
def default(request: pytest.FixtureRequest) -> Any:
    """A default that none of our calls may follow. The state is built before it counts: models follow it rightly."""
    return request.param


@pytest.fixture
def parts() -> Parts:
    """A model whose parameters an overlapped save copies later."""
    parts = build(width=20_000)
    train(parts, [0])
    return parts


def state_of(parts: Parts) -> str:
    return fingerprint([part.state_dict() for part in (parts.model, parts.optimizer, parts.scheduler)])


def unusual() -> dict[str, Any]:
    """Tensors of the kinds that torch builds by constructors that ask for the default device or type."""
    return {
        "sparse": torch.eye(3).to_sparse(),
        "rows": torch.eye(3).to_sparse_csr(),
        "quantized": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        "strided": torch.arange(200_000.0).view(100, 2000)[:, 3],
        "conjugate": torch.ones(3, dtype=torch.complex64).conj(),
        "empty": torch.zeros(0, 3, dtype=torch.float16),
        "narrow": torch.ones(5, dtype=torch.float8_e5m2),
        "leaf": torch.ones(3, requires_grad=True),
    }


def blocking(manager: CheckpointManager, **state: Any) -> str | None:
    return manager.save_checkpoint(**state)


def behind(manager: CheckpointManager, **state: Any) -> str | None:
    return manager.save_checkpoint_async(**state).result(timeout=60)


def prepared(manager: CheckpointManager, **state: Any) -> str | None:
    manager.prepare(model=state["model"], optimizer=state["optimizer"])
    return behind(manager, **state)


@pytest.mark.filterwarnings("ignore:Sparse C", "ignore:torch.quantize", "ignore:TypedStorage")
@pytest.mark.parametrize("overlap_copy", [False, True])
@pytest.mark.parametrize("save", [blocking, behind, prepared])
def test_saving_and_loading(
    make_manager: MakeManager, parts: Parts, default: Any, save: Callable[..., str], overlap_copy: bool
) -> None:
    """Every way to save stores the same, and every way to load brings it back to where it was."""
    manager = make_manager(overlap_copy=overlap_copy, health_check=True)
    before, other, extra = state_of(parts), build(1, width=20_000), unusual()
    with default():
        checkpoint_id = save(manager, **parts.kwargs(), epoch=0, extra_state=extra)
        manager.load_checkpoint(checkpoint_id, **other.kwargs())
        assert state_of(other) == before
        found = manager.load_checkpoint(checkpoint_id)
        as_stored = manager.load_checkpoint(checkpoint_id, map_location=None, trust_pickle=True)
        part = manager.load_checkpoint(checkpoint_id, keys=["model_state_dict.0"])
    for payload in (found, as_stored):
        assert fingerprint(payload["model_state_dict"]) == fingerprint(parts.model.state_dict())
        assert {key: _dense(value) for key, value in payload["extra_state"].items()} == {
            key: _dense(value) for key, value in extra.items()
        }
    assert fingerprint(part["model_state_dict"]["0.weight"]) == fingerprint(parts.model.state_dict()["0.weight"])


def _dense(tensor: torch.Tensor) -> str:
    if tensor.is_quantized:
        tensor = tensor.int_repr()
    return fingerprint((tensor.to_dense() if tensor.layout is not torch.strided else tensor).detach().resolve_conj())


@pytest.mark.filterwarnings("ignore:Sparse C", "ignore:torch.quantize", "ignore:TypedStorage")
def test_everything_else(make_manager: MakeManager, parts: Parts, default: Any, tmp_path: Path) -> None:
    """Resuming, validating, comparing, exporting, importing, repairing and restoring read and copy the same bytes."""
    manager, other = make_manager(), make_manager("other")
    extra = {"sparse": unusual()["sparse"]}
    with default():
        first = manager.save_checkpoint(**parts.kwargs(), epoch=0, extra_state=extra)
    assert first is not None
    train(parts, [1])
    before, resumed = state_of(parts), build(1, width=20_000)
    with default():
        second = manager.save_checkpoint(**parts.kwargs(), epoch=1)
        assert second is not None
        assert manager.resume(**resumed.kwargs()) is not None
        assert all(manager.validate_all())
        differences = manager.compare_checkpoints([first, second], tensors=True)["tensors_comparison"]
        assert all(values["max_abs_difference"] > 0 for values in differences[second].values())
        imported = other.import_checkpoint(manager.export_checkpoint(second, tmp_path / "exported"))
        flip_bit(payload_path(manager, second), -10_000)
        assert manager.repair_checkpoint(second).method == "file"  # it has a single chunk
        payload_path(manager, second).unlink()
        manager.restore_checkpoint(second)
        loaded = [manager.load_checkpoint(second), other.load_checkpoint(imported)]
    assert state_of(resumed) == before
    for payload in loaded:
        assert fingerprint(payload["model_state_dict"]) == fingerprint(parts.model.state_dict())


def test_each_allocation_names_its_device_and_type() -> None:
    """No call of torch's in the package leaves the place or the type of new memory to a default."""
    names = {function.__name__ for function in _device_constructors()}
    calls = [
        (f"{path.name}:{node.lineno}", {keyword.arg for keyword in node.keywords})
        for path in sorted(PACKAGE.rglob("*.py"))
        if "testing" not in path.parts
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).removeprefix("torch.") in names
        and ast.unparse(node.func).startswith("torch.")
    ]
    assert len(calls) >= 4
    assert [place for place, named in calls if not {"device", "dtype"} <= named] == []
