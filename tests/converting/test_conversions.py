"""Conversions from one program to another, without a store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from ckpt_lib import convert_checkpoint
from ckpt_lib.errors import (
    CheckpointExistsError,
    ConfigError,
    CorruptCheckpointError,
    NotACheckpointError,
    UnsupportedStateError,
)
from tests.converting.programs import STATES, Tied, loaded, payload_at, script
from tests.foreign.described import assert_same
from tests.helpers import flip_bit, snapshot, without_locks


@pytest.mark.parametrize("through", ["torch", "lightning"])
def test_there_and_back_is_the_same(tmp_path: Path, through: str) -> None:
    """Each state, the counts and the configuration come back from the other format to the bit."""
    contents = script(tmp_path / "a.pt")
    there = convert_checkpoint(tmp_path / "a.pt", tmp_path / "there" / "x", format=through)
    back = convert_checkpoint(there.path, tmp_path / "back.pt")
    found = loaded(back.path)
    for key in (*STATES, "epoch", "step", "config"):
        assert_same(found[key], contents[key])
    assert (
        found["model_state_dict"]["head.weight"].data_ptr() == found["model_state_dict"]["embedding.weight"].data_ptr()
    )


@pytest.mark.parametrize("through", ["w.pt", "w.ckpt", "w.safetensors", "folder/"])
def test_weights_there_and_back_are_the_same(tmp_path: Path, through: str) -> None:
    """The model loads them from any of the formats, and from what is made of that again."""
    contents = script(tmp_path / "a.pt")["model_state_dict"]
    kind = "hf-folder" if through.endswith("/") else None
    there = convert_checkpoint(tmp_path / "a.pt", f"{tmp_path}/{through}", only="model", format=kind)
    back = loaded(convert_checkpoint(there.path, tmp_path / "back.pt", only="model").path)
    assert_same({name: back[name] for name in back}, {name: contents[name] for name in back})
    assert contents.keys() - back.keys() <= {"head.weight"}
    model = Tied()
    model.load_state_dict(back, strict="head.weight" in back)
    assert_same(dict(model.state_dict()), dict(contents))


def test_weights_alone_are_a_bare_state_dict(tmp_path: Path) -> None:
    """Which load_state_dict takes, cast where it is a floating one."""
    contents = script(tmp_path / "a.pt")["model_state_dict"]
    result = convert_checkpoint(tmp_path / "a.pt", tmp_path / "w.pt", only="model", dtype="bf16")
    found = loaded(result.path)
    assert list(found) == list(contents)
    assert found["norm.num_batches_tracked"].dtype == torch.int64
    assert torch.equal(found["norm.weight"], contents["norm.weight"].bfloat16())
    assert found["head.weight"] is found["embedding.weight"]


def test_a_cast_leaves_the_optimizer_as_it_is(tmp_path: Path) -> None:
    """Its moments keep their precision, as mixed-precision training has them."""
    contents = script(tmp_path / "a.pt")
    found = loaded(convert_checkpoint(tmp_path / "a.pt", tmp_path / "b.pt", dtype=torch.bfloat16).path)
    assert found["model_state_dict"]["norm.weight"].dtype == torch.bfloat16
    assert_same(found["optimizer_state_dict"], contents["optimizer_state_dict"])


def test_views_share_memory_again(tmp_path: Path) -> None:
    """A part of a tensor comes back as that, and is stored with it once."""
    whole = torch.arange(1000.0)
    torch.save({"whole": whole, "part": whole[10:20]}, tmp_path / "a.pt")
    found = loaded(convert_checkpoint(tmp_path / "a.pt", tmp_path / "b.pt").path)["model_state_dict"]
    assert found["part"].untyped_storage().data_ptr() == found["whole"].untyped_storage().data_ptr()
    assert torch.equal(found["part"], whole[10:20])


def test_views_are_copied_where_a_cast_parts_them(tmp_path: Path) -> None:
    """Of overlapping tensors, each is cast as a whole."""
    whole = torch.arange(1000.0)
    torch.save({"whole": whole, "part": whole[10:20]}, tmp_path / "a.pt")
    for name in ("b.pt", "b.safetensors"):
        convert_checkpoint(tmp_path / "a.pt", tmp_path / name, dtype="fp16", only="model")
    assert torch.equal(loaded(tmp_path / "b.pt")["part"], whole[10:20].half())
    assert torch.equal(safetensors.torch.load_file(tmp_path / "b.safetensors")["part"], whole[10:20].half())


def test_tied_weights_in_safetensors_are_noted_as_its_library_does(tmp_path: Path) -> None:
    """load_model ties them again, and the report names them."""
    script(tmp_path / "a.pt")
    result = convert_checkpoint(tmp_path / "a.pt", tmp_path / "w.safetensors", only="model")
    model = Tied()
    safetensors.torch.load_model(model, result.path)
    assert_same(dict(model.state_dict()), dict(loaded(tmp_path / "a.pt")["model_state_dict"]))
    assert any("head.weight" in sentence for sentence in result.left_out)


def test_a_tied_tensor_named_format_is_stored_in_full(tmp_path: Path) -> None:
    """The metadata says something else under that name, so that no note can be there."""
    weight = torch.ones(2)
    torch.save({"weight": weight, "format": weight, "other": weight}, tmp_path / "a.pt")
    result = convert_checkpoint(tmp_path / "a.pt", tmp_path / "w.safetensors")
    assert_same(safetensors.torch.load_file(result.path), {"weight": weight, "format": weight})
    back = loaded(convert_checkpoint(result.path, tmp_path / "back.pt").path)["model_state_dict"]
    assert_same({name: back[name] for name in sorted(back)}, dict.fromkeys(("format", "other", "weight"), weight))


def test_a_large_model_becomes_shards_with_an_index(tmp_path: Path) -> None:
    """No file has more bytes of tensors than was said, but for a tensor that is larger, and the index names all."""
    weights = {f"layer{number}": torch.full((50,), float(number)) for number in range(7)} | {"large": torch.ones(300)}
    torch.save(weights, tmp_path / "a.pt")
    result = convert_checkpoint(tmp_path / "a.pt", tmp_path / "out" / "m.safetensors", shard_size=500)
    index = json.loads(Path(result.path).read_text())
    assert Path(result.path).name == "m.safetensors.index.json"
    assert index["metadata"]["total_size"] == 4 * (7 * 50 + 300)
    assert index["weight_map"].keys() == weights.keys()
    for file in set(index["weight_map"].values()):
        tensors = safetensors.torch.load_file(tmp_path / "out" / file)
        assert sum(tensor.nbytes for tensor in tensors.values()) <= 500 or list(tensors) == ["large"]
        assert_same(tensors, {name: weights[name] for name in tensors})


def test_a_folder_holds_the_configuration_of_the_model(tmp_path: Path) -> None:
    """Where the checkpoint's config has one; where not, the report says so."""
    config = {"lr": 1e-3, "model": {"model_type": "gpt2", "n_layer": 2}}
    script(tmp_path / "a.pt", config=config)
    script(tmp_path / "b.pt")
    result = convert_checkpoint(tmp_path / "a.pt", tmp_path / "a", format="hf-folder", only="model")
    assert json.loads((tmp_path / "a" / "config.json").read_text()) == config["model"]
    assert set(result.files) == {"model.safetensors", "config.json"}
    assert any("'head.weight' is the same memory as" in sentence for sentence in result.left_out)
    result = convert_checkpoint(tmp_path / "b.pt", tmp_path / "b", format="hf-folder", only="model")
    assert any("No config.json" in sentence for sentence in result.left_out)


def test_the_configuration_says_what_the_weights_were_cast_to(tmp_path: Path) -> None:
    """Or from_pretrained would cast them back."""
    script(tmp_path / "a.pt", config={"model_type": "gpt2", "dtype": "float32"})
    convert_checkpoint(tmp_path / "a.pt", tmp_path / "a", format="hf-folder", only="model", dtype="bf16")
    assert json.loads((tmp_path / "a" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("kind", ["safetensors", "hf-folder"])
def test_what_holds_weights_alone_refuses_more(tmp_path: Path, kind: str) -> None:
    """An optimizer's state is not left out unasked, and nothing is written."""
    script(tmp_path / "a.pt")
    with pytest.raises(UnsupportedStateError, match="optimizer_state_dict"):
        convert_checkpoint(tmp_path / "a.pt", tmp_path / "out", format=kind)
    assert not (tmp_path / "out").exists()


def test_a_state_that_is_no_tensor_is_refused_by_safetensors(tmp_path: Path) -> None:
    """With its name."""
    torch.save({"weight": torch.ones(2), "layer._extra_state": {"scale": 2.0}}, tmp_path / "a.pt")
    with pytest.raises(UnsupportedStateError, match="_extra_state"):
        convert_checkpoint(tmp_path / "a.pt", tmp_path / "w.safetensors")
    assert loaded(convert_checkpoint(tmp_path / "a.pt", tmp_path / "w.pt", only="model").path)["layer._extra_state"]


def test_an_overflow_leaves_nothing(tmp_path: Path) -> None:
    """The last of many tensors is too large for float16: no file, and no part of one."""
    torch.save({"ok": torch.ones(10), "large": torch.tensor([1e6])}, tmp_path / "a.pt")
    with pytest.raises(ConfigError, match="large"):
        convert_checkpoint(tmp_path / "a.pt", tmp_path / "out" / "w.pt", dtype="fp16")
    assert without_locks(snapshot(tmp_path / "out")) == {}


def test_a_flipped_bit_in_a_file_of_torch_leaves_nothing(tmp_path: Path) -> None:
    """Its own checksums tell, before anything is written."""
    torch.save({"weight": torch.zeros(100_000)}, tmp_path / "a.pt")
    flip_bit(tmp_path / "a.pt", (tmp_path / "a.pt").stat().st_size // 2)
    with pytest.raises(CorruptCheckpointError):
        convert_checkpoint(tmp_path / "a.pt", tmp_path / "out" / "w.pt")
    assert not (tmp_path / "out").exists()


def test_a_flipped_bit_in_a_folder_leaves_nothing(tmp_path: Path) -> None:
    """The files of torch.save in a folder are compared with their checksums as one alone is."""
    (tmp_path / "hf").mkdir()
    torch.save({"weight": torch.zeros(100_000)}, tmp_path / "hf" / "pytorch_model.bin")
    (tmp_path / "hf" / "config.json").write_text('{"model_type": "x"}')
    flip_bit(weights := tmp_path / "hf" / "pytorch_model.bin", weights.stat().st_size // 2)
    with pytest.raises(CorruptCheckpointError, match="damaged"):
        convert_checkpoint(tmp_path / "hf", tmp_path / "out" / "w.pt", only="model")
    assert not (tmp_path / "out").exists()


def test_what_a_link_leads_to_is_converted(tmp_path: Path) -> None:
    """A file or a folder, as an import takes it; a link to nothing is told to be that."""
    (tmp_path / "hf").mkdir()
    torch.save({"weight": torch.ones(3)}, tmp_path / "hf" / "pytorch_model.bin")
    (tmp_path / "hf" / "config.json").write_text('{"model_type": "x"}')
    for number, name in enumerate(("hf", "hf/pytorch_model.bin", "none")):
        (tmp_path / f"link-{number}").symlink_to(tmp_path / name)
    for number in (0, 1):
        result = convert_checkpoint(tmp_path / f"link-{number}", tmp_path / f"{number}.pt", only="model")
        assert torch.equal(loaded(result.path)["weight"], torch.ones(3))
    with pytest.raises(NotACheckpointError, match="nothing at this path"):
        convert_checkpoint(tmp_path / "link-2", tmp_path / "2.pt")


def test_another_file_stays_and_the_same_one_too(tmp_path: Path) -> None:
    """The second conversion finds the first; a file of anything else is left as it is, whatever its size."""
    script(tmp_path / "a.pt")
    first = Path(convert_checkpoint(tmp_path / "a.pt", tmp_path / "b.pt").path)
    before = first.stat().st_mtime_ns
    convert_checkpoint(tmp_path / "a.pt", first)
    assert first.stat().st_mtime_ns == before
    for precious in (b"precious", bytes(first.stat().st_size)):
        first.write_bytes(precious)
        with pytest.raises(CheckpointExistsError):
            convert_checkpoint(tmp_path / "a.pt", first)
        assert first.read_bytes() == precious


@pytest.mark.parametrize("is_there", [True, False])
def test_a_link_at_the_destination_stays(tmp_path: Path, *, is_there: bool) -> None:
    """Wherever it leads to, be it the source itself or nowhere: writing would replace it."""
    script(tmp_path / "a.pt")
    link = tmp_path / "b.pt"
    link.symlink_to(tmp_path / ("a.pt" if is_there else "nowhere.pt"))
    before = (tmp_path / "a.pt").read_bytes()
    with pytest.raises(CheckpointExistsError, match="another file has that name"):
        convert_checkpoint(tmp_path / "a.pt", link)
    assert link.is_symlink()
    assert (tmp_path / "a.pt").read_bytes() == before


def test_shards_beside_weights_in_one_file_are_not_written(tmp_path: Path) -> None:
    """Whoever reads the folder takes ``model.safetensors`` first, which holds another model."""
    for name, value in (("a.pt", 1.0), ("b.pt", 2.0)):
        torch.save({f"layer{number}": torch.full((50,), value) for number in range(3)}, tmp_path / name)
    convert_checkpoint(tmp_path / "a.pt", tmp_path / "out", format="hf-folder")
    before = snapshot(tmp_path)
    with pytest.raises(CheckpointExistsError, match=r"out/model\.safetensors"):
        convert_checkpoint(tmp_path / "b.pt", tmp_path / "out", format="hf-folder", shard_size=200)
    assert without_locks(snapshot(tmp_path)) == without_locks(before)


def test_shards_beside_another_index_are_not_written(tmp_path: Path) -> None:
    """All of them get their names, or none."""
    torch.save({"a": torch.ones(10), "b": torch.ones(10)}, tmp_path / "a.pt")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "w.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointExistsError):
        convert_checkpoint(tmp_path / "a.pt", tmp_path / "out" / "w.safetensors", shard_size=40)
    assert list(without_locks(snapshot(tmp_path / "out"))) == ["w.safetensors.index.json"]


@pytest.mark.parametrize(
    "options",
    [
        {"format": "onnx"},
        {"dtype": "int8"},
        {"dtype": 3},
        {"only": "optimizer"},
        {"shard_size": 0},
        {"shard_size": "x"},
    ],
)
def test_options_that_cannot_work_are_refused(tmp_path: Path, options: dict[str, object]) -> None:
    """Before the source is looked at."""
    with pytest.raises(ConfigError):
        convert_checkpoint(tmp_path / "none.pt", tmp_path / "b.pt", **options)  # type: ignore[arg-type]


def test_a_name_that_says_no_format_is_refused(tmp_path: Path) -> None:
    """It would be a guess."""
    script(tmp_path / "a.pt")
    with pytest.raises(ConfigError, match="which format"):
        convert_checkpoint(tmp_path / "a.pt", tmp_path / "b")


def test_nothing_and_no_checkpoint_are_told(tmp_path: Path) -> None:
    """A path without a file, and a file of text."""
    (tmp_path / "notes.txt").write_text("no checkpoint")
    for name in ("none.pt", "notes.txt"):
        with pytest.raises(NotACheckpointError):
            convert_checkpoint(tmp_path / name, tmp_path / "b.pt")


def test_lightning_gets_what_it_had_stored_itself(tmp_path: Path) -> None:
    """Loops, callbacks and names of hyperparameters have their places again after a way through another format."""
    contents = script(tmp_path / "a.pt")
    own = {
        "loops": {"fit_loop": {"state_dict": {"x": 1}}},
        "callbacks": {"Stopping": {"wait": 2}},
        "hparams_name": "kwargs",
    }
    lightning = {
        "epoch": 3,
        "global_step": 12,
        "pytorch-lightning_version": "2.6.6",
        "hyper_parameters": {"width": 6},
        "state_dict": contents["model_state_dict"],
        "optimizer_states": [contents["optimizer_state_dict"]],
        "lr_schedulers": [contents["scheduler_state_dict"]],
        **own,
    }
    torch.save(lightning, tmp_path / "l.ckpt")
    there = convert_checkpoint(tmp_path / "l.ckpt", tmp_path / "there.pt")
    back = loaded(convert_checkpoint(there.path, tmp_path / "back.ckpt").path)
    assert back.keys() == lightning.keys()
    for key, value in lightning.items():
        assert_same(back[key], value)


def test_a_way_through_both_keeps_all(tmp_path: Path) -> None:
    """What is read from a file of a script is what is read from the converted one."""
    script(tmp_path / "a.pt", extra_state={"note": "kept"})
    there = convert_checkpoint(tmp_path / "a.pt", tmp_path / "b.pt")
    again = convert_checkpoint(there.path, tmp_path / "c.pt")
    assert Path(again.path).read_bytes() == Path(there.path).read_bytes()
    assert payload_at(there.path)["epoch"] == 3
    assert loaded(there.path)["extra_state"] == {"note": "kept"}
