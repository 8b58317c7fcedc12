"""Weights in a folder: one file, or several with an index, written by the libraries themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from ckpt_lib.errors import CorruptCheckpointError, NotACheckpointError, UnsafePayloadError
from ckpt_lib.foreign import found_files, open_checkpoint, tensors_in
from tests.foreign.described import assert_same, kind_at, read, write_json

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    return {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16), "c": torch.zeros(0, 3)}


@pytest.fixture
def folder(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """Two shards with their index, as ``save_pretrained`` lays them out."""
    save_file({"a": tensors["a"]}, tmp_path / FIRST, metadata={"format": "pt"})
    save_file({name: tensors[name] for name in ("b", "c")}, tmp_path / SECOND, metadata={"format": "pt"})
    places = {"a": FIRST, "b": SECOND, "c": SECOND}
    write_json(tmp_path / INDEX, {"metadata": {"total_size": 32}, "weight_map": places})
    return tmp_path


def changed(folder: Path, **entries: Any) -> Path:
    """Write the index anew with other entries."""
    write_json(folder / INDEX, {**json.loads((folder / INDEX).read_text()), **entries})
    return folder


def test_shards_are_read_as_one_model(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Every tensor of every shard comes back to the bit, and nothing is found suspicious."""
    found = read(folder)
    assert found.checkpoint.kind == "huggingface"
    assert_same(found.payload["model_state_dict"], tensors)
    assert found.checkpoint.findings == ()


def test_bin_shards_are_read_as_one_model(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """The older files ``pytorch_model.bin`` are found by their index too, and read without unpickling."""
    places = {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}
    for name, file in places.items():
        torch.save({name: tensors[name]}, tmp_path / file)
    write_json(tmp_path / "pytorch_model.bin.index.json", {"weight_map": places})
    assert_same(read(tmp_path).payload["model_state_dict"], {name: tensors[name] for name in places})


def test_one_safetensors_file_is_taken_before_one_of_pytorch(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Where a folder holds both, the one that Transformers itself would load is read."""
    save_file({"a": tensors["a"]}, tmp_path / "model.safetensors")
    torch.save({"a": tensors["a"] + 1}, tmp_path / "pytorch_model.bin")
    assert_same(read(tmp_path).payload["model_state_dict"], {"a": tensors["a"]})


def test_tensors_of_two_files_with_one_name_share_no_memory(tmp_path: Path) -> None:
    """Two models of one folder are told apart, although both call their tensor ``weight``."""
    save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    save_file({"weight": torch.ones(2)}, tmp_path / "model_1.safetensors")
    torch.save({"state": {}, "param_groups": []}, tmp_path / "optimizer.bin")
    with open_checkpoint(tmp_path) as found:
        stored = [tensor for _, tensor in tensors_in(found.contents)]
        assert len({tensor.memory for tensor in stored}) == 2


def test_tied_weights_have_each_of_their_names_again(tmp_path: Path) -> None:
    """``save_model`` stores them once, and notes the other names; all of them come back, sharing memory."""
    model = nn.ModuleDict({"embedding": nn.Linear(3, 3), "head": nn.Linear(3, 3)})
    model["head"].weight = model["embedding"].weight
    save_model(model, str(tmp_path / "tied.safetensors"))
    found = read(tmp_path / "tied.safetensors").payload["model_state_dict"]
    assert_same(found, dict(model.state_dict()))
    assert found["head.weight"].data_ptr() == found["embedding.weight"].data_ptr()


def test_tied_weights_that_lie_unaligned_are_copied_once(tmp_path: Path) -> None:
    """However many names a tensor has: else a small file of many names would take any amount of memory."""
    facts = {"dtype": "F64", "shape": [2], "data_offsets": [0, 16]}
    header = json.dumps({"__metadata__": {f"n{number}": "w" for number in range(9)}, "w": facts}).encode()
    header += b" " * (5 - len(header) % 8)
    data = len(header).to_bytes(8, "little") + header + torch.ones(2, dtype=torch.float64).numpy().tobytes()
    (tmp_path / "tied.safetensors").write_bytes(data)
    found = read(tmp_path / "tied.safetensors").payload["model_state_dict"]
    assert_same(found, dict.fromkeys(found, torch.ones(2, dtype=torch.float64)))
    assert len(found) == 10
    assert len({tensor.data_ptr() for tensor in found.values()}) == 1


def test_a_missing_shard_is_named(folder: Path) -> None:
    """Half a model is refused, with the name of the file to fetch."""
    (folder / SECOND).unlink()
    with pytest.raises(CorruptCheckpointError, match=f"1 file that the folder lacks: {SECOND}"):
        read(folder)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/model.safetensors", "sub/model.safetensors", "x.bin"])
def test_a_shard_outside_the_folder_is_refused(folder: Path, name: str) -> None:
    """An index cannot make a reader open anything but the files beside it."""
    with pytest.raises(CorruptCheckpointError, match="something else than files beside it"):
        read(changed(folder, weight_map={"a": name}))


def test_a_tensor_in_two_shards_is_refused(folder: Path) -> None:
    """Which of the two is right, no one can tell."""
    save_file({"a": torch.zeros(2, 3), "b": torch.ones(4), "c": torch.zeros(0, 3)}, folder / SECOND)
    with pytest.raises(CorruptCheckpointError, match="'a' is in two files"):
        read(folder)


def test_a_tensor_that_its_shard_lacks_is_named(folder: Path) -> None:
    """An index that names more than there is belongs to another set of files."""
    with pytest.raises(CorruptCheckpointError, match=r"1 tensor of .* not in their files: d"):
        read(changed(folder, weight_map={"a": FIRST, "b": SECOND, "d": SECOND}))


@pytest.mark.parametrize("size_bytes", [0, 4, 40, 100])
def test_a_shard_that_is_cut_off_is_named(folder: Path, size_bytes: int) -> None:
    """A download that broke off is found when the checkpoint is opened, and the error names the file."""
    (folder / FIRST).write_bytes((folder / FIRST).read_bytes()[:size_bytes])
    with pytest.raises(CorruptCheckpointError, match=FIRST):
        read(folder)


def test_what_the_index_does_not_say_is_a_finding(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """A tensor that the index forgets is read all the same, and said, as is another size."""
    found = read(changed(folder, weight_map={"a": FIRST, "b": SECOND}, metadata={"total_size": 5}))
    assert_same(found.payload["model_state_dict"], tensors)
    assert [finding.partition(" does")[0].partition(" says")[0] for finding in found.checkpoint.findings] == [INDEX] * 2


@pytest.mark.parametrize("weight_map", [None, [], {}, "x", {"a": 1}, {"a": None}])
def test_an_index_without_a_map_is_refused(folder: Path, weight_map: Any) -> None:
    """An index of any other shape raises a typed error."""
    with pytest.raises(CorruptCheckpointError, match="no weight_map"):
        read(changed(folder, weight_map=weight_map))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", CorruptCheckpointError),
        ("[1]", CorruptCheckpointError),
        ("{", CorruptCheckpointError),
        ('{"a": 1, "a": 2}', CorruptCheckpointError),
        ("\udcff", CorruptCheckpointError),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", UnsafePayloadError),
        ('{"a": ' + "[" * 150 + "]" * 150 + "}", UnsafePayloadError),
        ('{"a": [' + "[]," * 2_100_000 + "[]]}", UnsafePayloadError),
        ('{"a": "' + " " * 2**25 + '"}', UnsafePayloadError),
    ],
    ids=["empty", "list", "cut off", "twice", "no text", "deep", "deeper than ours", "many parts", "long"],
)
def test_hostile_json_is_refused(folder: Path, text: str, error: type[Exception]) -> None:
    """JSON of any size, depth or shape is refused in bounded time and memory."""
    (folder / INDEX).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(error, match=INDEX):
        read(folder)


def test_a_folder_without_known_names_is_no_model(tmp_path: Path) -> None:
    """The names decide, so that a folder of other files is not mistaken for a model."""
    save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    assert kind_at(tmp_path) == "huggingface"
    (tmp_path / "model.safetensors").rename(tmp_path / "mine.txt")
    with pytest.raises(ValueError, match="no program is known"):
        kind_at(tmp_path)


def test_one_shard_alone_is_no_model(folder: Path) -> None:
    """It is described, but nobody loads half a model by naming one of its files."""
    with open_checkpoint(folder / FIRST) as found:
        assert list(found.contents) == ["a"]
        assert found.payload is None
        assert "Name the folder" in str(found.obstacle)


def test_an_index_alone_leads_to_its_folder(folder: Path) -> None:
    """Who names the index is told to name the folder."""
    with pytest.raises(NotACheckpointError, match="Name the folder"):
        kind_at(folder / INDEX)


def test_links_in_a_circle_end(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Links to the folder itself, or to one above it, are not followed again; one to a folder elsewhere is."""
    there = tmp_path / "there"
    there.mkdir()
    save_file(tensors, there / "other.safetensors")
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    save_file(tensors, folder / "inner" / "x.safetensors")
    for number in range(8):
        (folder / f"self{number}").symlink_to(folder)
        (folder / "inner" / f"above{number}").symlink_to("..")
    (folder / "linked").symlink_to(there)
    with found_files(folder) as files:
        assert files.names == ("inner/x.safetensors", "linked/other.safetensors")
