"""Inspections: what any checkpoint holds, told without running code and without reading tensors."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from ckpt_lib import CheckpointConfig, CheckpointManager, inspect_checkpoint
from ckpt_lib.core.manifest import Claim, Manifest, parse_record
from ckpt_lib.core.owners import Owner
from ckpt_lib.errors import ConfigError, NotACheckpointError
from ckpt_lib.experiment.locations import Locations
from ckpt_lib.foreign import ForeignCheckpoint, FoundFiles, StoredTensor
from ckpt_lib.foreign.opening import describe_checkpoint
from ckpt_lib.inspecting import statistics
from ckpt_lib.inspecting.statistics import statistics_of
from ckpt_lib.inspecting.stored import inspect_stored
from ckpt_lib.store import open_store
from ckpt_lib.stream import VerifiedFile
from ckpt_lib.stream.mapping import FetchedFile
from tests.formats.every_format import NPZ
from tests.helpers import Parts

FORMATS = [(name, compression) for name in ("torch", "safetensors") for compression in (False, True, "zstd")]


class Bomb:
    """An object whose pickle runs a command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    """Tensors of several types, one of them empty, one with what is not finite."""
    spoilt = torch.tensor([1.0, float("nan"), float("inf"), -float("inf"), 0.0, -2.0])
    return {
        "layer.weight": torch.arange(12.0).view(3, 4),
        "layer.spoilt": spoilt,
        "half": torch.tensor([0.5, -0.25]).bfloat16(),
        "steps": torch.tensor([2**53 + 1, -7]),
        "mask": torch.tensor([True, False, False]),
        "none": torch.empty(0, 3),
        "narrow": torch.tensor([1.0, 2.0]).to(torch.float8_e4m3fn),
        "waves": torch.tensor([3 + 4j, 0j]),
    }


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The byte ranges that were asked of files."""
    ranges: list[tuple[int, int]] = []
    require = VerifiedFile.require

    def noted(self: VerifiedFile, wanted: Iterable[tuple[int, int]]) -> None:
        found = list(wanted)
        ranges.extend(found)
        require(self, found)

    monkeypatch.setattr(VerifiedFile, "require", noted)
    return ranges


# --- files of other programs ---


@pytest.mark.parametrize("write", [save_file, torch.save], ids=["safetensors", "torch"])
def test_a_file_is_described(
    tmp_path: Path, weights: dict[str, torch.Tensor], write: Callable[[Any, Path], object]
) -> None:
    """Each tensor with its type, shape and size, in total and by type; and what it takes to load them."""
    write(weights, path := tmp_path / ("w.safetensors" if write is save_file else "w.pt"))
    found = inspect_checkpoint(path)
    assert found
    assert (found.size_bytes, found.file_count, found.needs) == (path.stat().st_size, 1, ())
    listed = {tensor.name: (f"torch.{tensor.dtype}", tensor.shape, tensor.size_bytes) for tensor in found.tensors}
    assert listed == {name: (str(item.dtype), tuple(item.shape), item.nbytes) for name, item in weights.items()}
    assert found.tensor_bytes == sum(found.bytes_by_dtype.values()) == sum(item.nbytes for item in weights.values())
    assert found.bytes_by_dtype["int64"] == 16
    assert found.model_element_count == sum(item.numel() for item in weights.values())
    assert [(state.name, state.tensor_count) for state in found.states] == [("model", len(weights))]
    assert not any(tensor.statistics for tensor in found.tensors)


@pytest.mark.parametrize("write", [save_file, torch.save], ids=["safetensors", "torch"])
def test_no_tensor_is_read(tmp_path: Path, asked: list[Any], write: Callable[[Any, Path], object]) -> None:
    """Of 8 MB, a few kilobytes of structure are asked for."""
    write({f"w{number}": torch.ones(250_000) for number in range(8)}, path := tmp_path / "w.safetensors")
    assert len(inspect_checkpoint(path).tensors) == 8
    assert 0 < sum(stop - start for start, stop in asked) < 20_000


def test_a_store_without_descriptors_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a URL, small parts of a file are fetched; with statistics, all of it is."""
    fetched: list[int] = []
    fetch = FetchedFile.fetch

    def noted(self: FetchedFile, start: int, stop: int) -> bool:
        fetched.append(stop - start)
        return fetch(self, start, stop)

    monkeypatch.setattr(FetchedFile, "fetch", noted)
    save_file({"w": torch.ones(2_000_000)}, path := tmp_path / "w.safetensors")
    open_store("memory://inspected/run").put("w.safetensors", path.read_bytes())
    url = "memory://inspected/run/w.safetensors"
    assert inspect_checkpoint(url).tensors[0].shape == (2_000_000,)
    assert 0 < sum(fetched) < 300_000
    (tensor,) = inspect_checkpoint(url, stats=True).tensors
    assert tensor.statistics
    assert tensor.statistics.mean == 1.0
    assert sum(fetched) > 8_000_000


def test_statistics_are_those_of_the_finite_elements(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    """Norm, mean, extremes and counts are right for every type; whole numbers stay exact; the rest is counted."""
    save_file(weights, path := tmp_path / "w.safetensors")
    done: list[int] = []
    found = inspect_checkpoint(path, stats=True, progress=done.append)
    assert sum(done) == found.tensor_bytes
    known = {tensor.name: tensor.statistics for tensor in found.tensors}
    spoilt, steps, waves = known["layer.spoilt"], known["steps"], known["waves"]
    assert spoilt
    assert (spoilt.nan_count, spoilt.infinite_count, spoilt.zero_count) == (1, 2, 1)
    assert (spoilt.min, spoilt.max) == (-2.0, 1.0)
    assert spoilt.norm == pytest.approx(5**0.5)
    assert steps
    assert (steps.min, steps.max) == (-7, 2**53 + 1)
    assert waves
    assert (waves.norm, waves.min, waves.mean, waves.zero_count) == (5.0, None, None, 1)
    assert known["none"]
    assert known["none"].norm is None
    assert known["mask"]
    assert known["mask"].mean == pytest.approx(1 / 3)
    assert known["narrow"]
    assert known["narrow"].max == 2.0
    assert "There are NaN in 'layer.spoilt'." in found.findings
    assert "There are infinities in 'layer.spoilt'." in found.findings


@given(
    numbers=st.lists(st.floats(width=64, allow_nan=True) | st.just(0.0), max_size=40),
    block=st.integers(1, 50),
)
def test_statistics_do_not_depend_on_the_blocks(numbers: list[float], block: int) -> None:
    """Whatever is read at a time, they are those that NumPy finds at once; also where squares are too large."""
    tensor = torch.tensor(numbers, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "_BLOCK_ELEMENTS", block)
        found = statistics_of(StoredTensor(tensor.dtype, tuple(tensor.shape), 0, read=lambda: tensor))
    assert found
    finite = np.array([number for number in numbers if np.isfinite(number)], dtype=np.longdouble)
    assert found.nan_count == sum(map(math.isnan, numbers))
    assert found.infinite_count == len(numbers) - found.nan_count - len(finite)
    assert found.zero_count == sum(number == 0 for number in numbers)
    if not len(finite):
        assert (found.norm, found.mean, found.min, found.max) == (None,) * 4
        return
    assert (found.min, found.max) == (float(finite.min()), float(finite.max()))
    norm, scale = float(np.sqrt((finite**2).sum())), float(np.abs(finite).max())
    assert found.norm == pytest.approx(norm, rel=1e-9)
    assert found.mean == pytest.approx(float(finite.mean()), rel=1e-9, abs=scale * 1e-9)


def test_memory_is_let_go_of_while_a_tensor_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block is forgotten before the next but one is read, so that a tensor of any size takes a few megabytes."""
    monkeypatch.setattr(statistics, "_BLOCK_ELEMENTS", 2**16)
    forgotten: list[tuple[int, int]] = []
    forget = VerifiedFile.forget

    def noted(self: VerifiedFile, start: int, stop: int) -> None:
        forgotten.append((start, stop))
        forget(self, start, stop)

    monkeypatch.setattr(VerifiedFile, "forget", noted)
    save_file({"w": torch.arange(1_000_000.0)}, path := tmp_path / "w.safetensors")
    (tensor,) = inspect_checkpoint(path, stats=True).tensors
    assert tensor.statistics
    assert tensor.statistics.mean == pytest.approx(499_999.5)
    assert sum(stop - start for start, stop in forgotten) == 4_000_000
    assert max(stop - start for start, stop in forgotten) == 2**18


def test_tied_tensors_count_once(tmp_path: Path) -> None:
    """Both names are listed, and the second says whose memory it is; views of different parts count each."""
    tied, pool = torch.ones(4, 2), torch.arange(6.0)
    torch.save({"a": tied, "b": tied, "c": pool[:3], "d": pool[3:]}, path := tmp_path / "w.pt")
    found = inspect_checkpoint(path, stats=True)
    assert [tensor.shares_memory_with for tensor in found.tensors] == [None, "a", None, "c"]
    assert (found.model_element_count, found.tensor_bytes) == (14, 56)
    means = [tensor.statistics.mean for tensor in found.tensors if tensor.statistics]
    assert means == [1.0, 1.0, 1.0, 4.0]


def test_statistics_are_those_of_the_tensor_and_not_of_its_name(tmp_path: Path) -> None:
    """Two tensors of one dotted name differ; tied ones have the same; views of one memory have each their own."""
    torch.save({"a.b": torch.ones(3), "a": {"b": torch.zeros(3)}}, tmp_path / "dup.pt")
    layer, long = torch.nn.Linear(3, 3, bias=False), torch.arange(10.0)
    state = {"first": layer.state_dict(), "second": layer.state_dict(), "half": long[:5], "even": long[::2]}
    torch.save(state, tmp_path / "tied.pt")
    means = {}
    for name in ("dup.pt", "tied.pt"):
        found = inspect_checkpoint(tmp_path / name, stats=True)
        means[name] = [tensor.statistics.mean for tensor in found.tensors if tensor.statistics]
    assert means["dup.pt"] == [1, 0]
    mean = pytest.approx(layer.weight.mean().item())
    assert means["tied.pt"] == [mean, mean, 2, 4]


def test_any_stride_is_read(tmp_path: Path) -> None:
    """Transposed, with gaps and expanded: the statistics are those of the elements that the tensor has."""
    base = torch.arange(24.0).view(4, 6)
    tensors = {"turned": base.t(), "sparse": base[:, ::2], "wide": torch.tensor([2.0]).expand(5)}
    torch.save(tensors, path := tmp_path / "w.pt")
    found = {tensor.name: tensor.statistics for tensor in inspect_checkpoint(path, stats=True).tensors}
    for name, tensor in tensors.items():
        read = found[name]
        assert read
        assert read.mean == pytest.approx(float(tensor.mean()))
        assert read.norm == pytest.approx(float(tensor.norm()))


# --- what is suspicious ---


def test_no_code_runs(tmp_path: Path) -> None:
    """A pickle that would run a command is described, and the command is named."""
    torch.save({"model": {"w": torch.ones(2)}, "x": Bomb(tmp_path / "ran")}, path := tmp_path / "w.pt")
    found = inspect_checkpoint(path, stats=True)
    assert not (tmp_path / "ran").exists()
    assert found.classes == (f"{os.system.__module__}.system",)
    assert "trust_pickle" in found.needs
    assert sum("system" in finding for finding in found.findings) == 1
    assert any("which no checkpoint needs" in finding for finding in found.findings)
    assert [tensor.name for tensor in found.tensors] == ["model.w"]


def test_no_code_of_a_part_runs(tmp_path: Path) -> None:
    """The same in a folder, one of whose files would run it."""
    torch.save({"w": torch.ones(2), "x": Bomb(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
    found = inspect_checkpoint(tmp_path)
    assert not (tmp_path / "ran").exists()
    assert sum("system" in finding for finding in found.findings) == 1


def test_a_class_of_another_package_is_named(tmp_path: Path) -> None:
    """A module that was pickled whole: its tensors are listed, and what loading all of it would take."""
    torch.save({"model": torch.nn.Linear(3, 2)}, path := tmp_path / "w.pt")
    found = inspect_checkpoint(path)
    assert found.classes == ("torch.nn.modules.linear.Linear",)
    assert [tensor.shape for tensor in found.tensors] == [(2, 3), (2,)]
    assert found.needs == ("trust_pickle",)


def test_buffers_are_not_called_parameters(tmp_path: Path) -> None:
    """A module pickled whole tells which of its values are parameters; of a state dict, nobody can say."""
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    torch.save(module, whole := tmp_path / "whole.pt")
    torch.save(module.state_dict(), weights := tmp_path / "weights.pt")
    of_module, of_weights = inspect_checkpoint(whole), inspect_checkpoint(weights)
    assert of_module.parameter_count == sum(item.numel() for item in module.parameters()) == 12
    assert of_weights.parameter_count is None
    assert of_module.model_element_count == of_weights.model_element_count == 12 + 5


def test_memory_that_is_stored_for_nothing_is_found(tmp_path: Path) -> None:
    """One row of a large table drags the whole table along."""
    torch.save({"row": torch.ones(1_000_000, 2)[0]}, path := tmp_path / "w.pt")
    (finding,) = inspect_checkpoint(path).findings
    assert finding.startswith("'row' uses a small part of its memory, and 7.6 MiB are stored for nothing")


@pytest.mark.parametrize(
    ("name", "write", "said"),
    [
        ("w.safetensors", torch.save, "it holds a pickle"),
        ("w.pt", save_file, "torch.load cannot read it"),
        ("w.png", torch.save, "unusual"),
    ],
)
def test_a_misleading_name_is_found(tmp_path: Path, name: str, write: Callable[[Any, Path], object], said: str) -> None:
    """A name that says something else than the content."""
    write({"w": torch.ones(2)}, path := tmp_path / name)
    (finding,) = inspect_checkpoint(path).findings
    assert said in finding


def test_an_optimizer_of_another_model_is_found(tmp_path: Path, parts: Parts) -> None:
    """Its state has shapes that no tensor of the model has; that of the model's own is no finding."""
    sound = {"model": parts.model.state_dict(), "optimizer": parts.optimizer.state_dict()}
    torch.save(sound, path := tmp_path / "w.pt")
    assert inspect_checkpoint(path).findings == ()
    other = torch.nn.Linear(7, 11)
    optimizer = torch.optim.Adam(other.parameters())
    other(torch.ones(1, 7)).sum().backward()
    optimizer.step()
    torch.save({**sound, "optimizer": optimizer.state_dict()}, path)
    (finding,) = inspect_checkpoint(path).findings
    assert finding.startswith("The optimizer has state for 2 parameters of shapes that the model has not: 0 [11, 7]")


# --- damaged and unknown ---


@pytest.mark.parametrize("write", [save_file, torch.save], ids=["safetensors", "torch"])
@pytest.mark.parametrize("share", [0.2, 0.99])
def test_a_file_that_is_cut_off_is_a_problem(
    tmp_path: Path, write: Callable[[Any, Path], object], share: float
) -> None:
    """What it was, how large it is, and that it cannot be read; nothing is raised."""
    write({"w": torch.ones(5_000)}, path := tmp_path / "w.bin")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    found = inspect_checkpoint(path)
    assert not found
    assert found.problem
    assert (found.size_bytes, found.needs) == (int(share * len(whole)), ("repair",))
    assert found.title in ("a safetensors file", "a damaged zip archive")


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"GGUF" + bytes(60), bytes(100)])
def test_what_is_no_checkpoint_is_a_problem(tmp_path: Path, content: bytes) -> None:
    """With its size, and its kind where that is known."""
    (path := tmp_path / "x").write_bytes(content)
    found = inspect_checkpoint(path)
    assert found.problem
    assert (found.kind, found.size_bytes) == ("unknown", len(content))
    assert found.title == {b"": "an empty file", b"GGUF": "a GGUF file"}.get(content[:4], "a file of an unknown kind")


def test_nothing_at_the_path_raises(tmp_path: Path) -> None:
    """There is nothing to describe."""
    with pytest.raises(NotACheckpointError, match="nothing at this path"):
        inspect_checkpoint(tmp_path / "none")
    with pytest.raises(ConfigError):
        inspect_checkpoint("")


# --- checkpoints of a store ---


def test_a_checkpoint_in_memory_is_described_through_its_store(parts: Parts) -> None:
    """A store need not serve URLs below its own: what is read is asked of the store that holds the manifest."""
    manager = CheckpointManager(CheckpointConfig(checkpoint_dir="memory://described", format="safetensors"), "run")
    manager.save_checkpoint(**parts.kwargs(), epoch=3)
    place, manifest = Locations(manager.config, "run").find("latest")
    found = inspect_stored(place, manifest, stats=True)
    assert (found.problem, found.findings, found.epoch) == (None, (), 3)
    assert all(tensor.statistics for tensor in found.tensors)
    assert found.file_count == len(manifest.files)


@pytest.mark.usefixtures("npz_format")
@pytest.mark.parametrize(("format_name", "compression"), [*FORMATS, (NPZ, False), (NPZ, True)])
def test_a_checkpoint_of_a_store_is_described_by_its_manifest(
    store_path: Path, parts: Parts, format_name: str, compression: Any
) -> None:
    """By its manifest or payload, in every format, compressed or not, and in one of another package."""
    config = CheckpointConfig(checkpoint_dir=str(store_path), format=format_name, compression=compression)
    manager = CheckpointManager(config, "run")
    saved = manager.save_checkpoint(
        **parts.kwargs(), epoch=3, step=9, metrics={"val_loss": 0.5}, tags=["a tag"], config={"lr": 0.1}
    )
    assert saved
    record = manifest_of(store_path / "run" / f"{saved}.json")
    expected = {name: float(tensor.double().norm()) for name, tensor in parts.model.state_dict().items()}
    for path in (store_path / "run" / f"{saved}.json", store_path / "run" / record.payload_name):
        found = inspect_checkpoint(path, stats=True)
        assert found.problem is None
        assert found.findings == ()
        assert (found.epoch, found.step, found.metrics, found.config) == (3, 9, {"val_loss": 0.5}, {"lr": 0.1})
        assert found.checkpoint
        assert (found.checkpoint.checkpoint_id, found.checkpoint.tags) == (saved, ("a tag",))
        assert (found.checkpoint.compression_ratio is not None) == bool(compression)
        read = {tensor.name.removeprefix("model_state_dict."): tensor.statistics for tensor in found.tensors}
        norms = {name: statistics.norm for name in expected if (statistics := read[name])}
        assert norms == pytest.approx(expected)
        assert [state.name for state in found.states][:3] == ["model", "optimizer", "scheduler"]


@pytest.mark.parametrize("format_name", ["torch", "safetensors"])
def test_tensors_of_one_dotted_name_in_a_store_are_told_apart(store_path: Path, format_name: str) -> None:
    """Each has its own statistics, in every format."""
    manager = CheckpointManager(CheckpointConfig(checkpoint_dir=str(store_path), format=format_name), "run")
    extra = {"a.b": torch.ones(3), "a": {"b": torch.zeros(3)}}
    saved = manager.save_checkpoint(model=torch.nn.Linear(1, 1), epoch=1, extra_state=extra)
    found = inspect_checkpoint(store_path / "run" / f"{saved}.json", stats=True)
    read = [item.statistics for item in found.tensors if item.name == "extra_state.a.b"]
    assert [statistics.mean for statistics in read if statistics] == [1, 0]


def test_what_was_imported_in_place_is_told_as_what_it_was(
    manager: CheckpointManager, store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its kind and key map; tied weights count once, and --stats looks at its structure once."""
    (store_path / "run").mkdir(parents=True, exist_ok=True)
    layer = torch.nn.Linear(3, 3)
    contents = {"epoch": 3, "zz": {"one": layer.state_dict(), "two": layer.state_dict()}, "state_dict": {}}
    torch.save({**contents, "pytorch-lightning_version": "2.0.0"}, path := store_path / "run" / "odd.ckpt")
    saved = manager.import_checkpoint(path, key_map={"zz": "model"}, in_place=True)
    opened: list[FoundFiles] = []

    def counted(files: FoundFiles) -> ForeignCheckpoint:
        opened.append(files)
        return describe_checkpoint(files)

    monkeypatch.setattr("ckpt_lib.inspecting.placeholders.describe_checkpoint", counted)
    found = inspect_checkpoint(store_path / "run" / f"{saved}.json", stats=True)
    assert (found.problem, found.findings, found.kind, found.epoch) == (None, (), "lightning", 3)
    assert found.title == "a Lightning checkpoint, imported in place"
    assert (found.model_element_count, len(found.tensors), len(opened)) == (12, 4, 1)
    assert all(tensor.statistics for tensor in found.tensors)
    assert found.checkpoint
    assert (found.checkpoint.checkpoint_id, found.checkpoint.format) == (saved, "foreign")


def manifest_of(path: Path) -> Manifest:
    record = parse_record(path.read_bytes(), path=str(path))
    assert isinstance(record, Manifest)
    return record


@pytest.fixture
def saved(manager: CheckpointManager, parts: Parts, store_path: Path) -> Path:
    """The manifest of a checkpoint."""
    return store_path / "run" / f"{manager.save_checkpoint(**parts.kwargs(), epoch=3)}.json"


def test_an_export_is_described_by_its_folder(manager: CheckpointManager, saved: Path, tmp_path: Path) -> None:
    """A folder with one manifest; one with several names none."""
    manager.export_checkpoint("latest", tmp_path / "export")
    found = inspect_checkpoint(tmp_path / "export")
    assert found.checkpoint
    assert found.checkpoint.checkpoint_id == saved.stem
    manager.save_checkpoint(model=torch.nn.Linear(1, 1), epoch=4)
    several = inspect_checkpoint(saved.parent)
    assert several.problem
    assert "holds 2 checkpoints" in several.problem


@pytest.mark.parametrize("is_missing", [True, False])
def test_a_payload_that_disagrees_with_its_manifest_is_a_problem(saved: Path, is_missing: bool) -> None:
    """Missing or cut off: what the manifest says is left."""
    payload = saved.with_suffix(".pt")
    size_bytes = payload.stat().st_size
    payload.unlink() if is_missing else payload.write_bytes(payload.read_bytes()[:-10])
    found = inspect_checkpoint(saved)
    assert found.problem
    assert ("missing" if is_missing else f"expected {size_bytes:,} bytes") in found.problem
    assert (found.kind, found.epoch) == ("torch", 3)
    assert found.checkpoint


def test_a_manifest_of_another_epoch_is_a_finding(saved: Path) -> None:
    """The payload is told from the manifest."""
    saved.write_bytes(manifest_of(saved).changed(epoch=8).to_bytes())
    (finding,) = inspect_checkpoint(saved).findings
    assert finding == "Its manifest says epoch 8, and its payload epoch 3."


def test_a_payload_with_a_damaged_manifest_is_described_without_it(saved: Path) -> None:
    """The payload says what it is; the manifest itself is a problem."""
    saved.write_bytes(saved.read_bytes()[:-20])
    assert inspect_checkpoint(saved).problem
    found = inspect_checkpoint(saved.with_suffix(".pt"))
    assert found
    assert (found.kind, found.checkpoint, found.epoch) == ("payload", None, 3)
    assert found.findings[-1].startswith("Its manifest does not help: the manifest is damaged")


@pytest.mark.parametrize(("state", "said"), [("saving", "has not ended"), ("abandoned", "given up")])
def test_a_save_that_has_not_ended_is_a_problem(saved: Path, state: Any, said: str) -> None:
    """The record of a claim is no checkpoint."""
    manifest = manifest_of(saved)
    claim = Claim(
        checkpoint_id=saved.stem,
        uid=manifest.uid,
        claim=manifest.claim,
        state=state,
        owner=Owner.current(),
        files=(f"{saved.stem}.pt",),
    )
    saved.write_bytes(claim.to_bytes())
    found = inspect_checkpoint(saved)
    assert found.problem
    assert said in found.problem
