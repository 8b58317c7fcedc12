"""Files of checkpoints: named and filled as was asked for, readable without our code, exported and imported."""

from __future__ import annotations

import hashlib
import json
import site
import subprocess
import sys
from pathlib import Path

import torch

from ckpt_lib import CheckpointManager
from tests.helpers import MakeManager, Parts, build, contents, experiment_folder, payload_path, save, train

PAYLOAD_KEYS = {
    "model_state_dict",
    "optimizer_state_dict",
    "scheduler_state_dict",
    "epoch",
    "step",
    "metrics",
    "config",
    "extra_state",
    "rng_state",
    "data_state",
    "others",
}


def test_names_on_disk(manager: CheckpointManager) -> None:
    """Payload, manifest, checkpoint_metadata.json and backups/ lie where they were asked for; backups have pointers."""
    saved = save(manager, 1, step=100)
    folder = experiment_folder(manager)
    assert folder.name == "run"
    names = {name for name in contents(folder) if not name.startswith("backups/uids")}
    pair = {f"{saved}.pt", f"{saved}.json"}
    assert names == pair | {"checkpoint_metadata.json", "backups"} | {f"backups/{name}" for name in pair}


def test_checkpoint_metadata_json_lists_every_checkpoint(manager: CheckpointManager) -> None:
    """The file for people follows saves, edits and deletions."""
    saved = [save(manager, epoch) for epoch in (1, 2, 3)]
    manager.edit_checkpoint(saved[1], add_tags=["kept"])
    manager.delete_checkpoint(saved[0])
    content = json.loads((experiment_folder(manager) / "checkpoint_metadata.json").read_text())
    assert content["experiment_name"] == "run"
    assert [item["checkpoint_id"] for item in content["checkpoints"]] == saved[1:]
    assert content["checkpoints"][0]["tags"] == ["kept"]


def test_save_metadata_false_leaves_out_the_extras(make_manager: MakeManager) -> None:
    """Without metadata there is no snapshot and no run config, and the checkpoint is as good as any."""
    manager = make_manager(save_metadata=False)
    saved = save(manager, 1, config={"lr": 1})
    assert not (experiment_folder(manager) / "checkpoint_metadata.json").exists()
    assert manager.get_checkpoint(saved).config == {}
    assert manager.validate_checkpoint(saved)


def test_sha256_is_what_other_tools_compute(manager: CheckpointManager) -> None:
    """The checksum is that of hashlib and of sha256sum over the payload file."""
    saved = save(manager, 1)
    path = payload_path(manager, saved)
    checksum = manager.get_checkpoint(saved).checksum
    assert checksum == hashlib.sha256(path.read_bytes()).hexdigest()
    if sys.platform == "linux":
        printed = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout
        assert checksum == printed.split()[0]


def test_plain_torch_reads_the_payload_without_our_code(manager: CheckpointManager, parts: Parts) -> None:
    """torch.load(weights_only=True) of a Python that cannot import us reads exactly the documented keys."""
    train(parts, range(2))
    saved = manager.save_checkpoint(
        **parts.kwargs(), epoch=4, step=8, metrics={"val_loss": 0.5}, config={"lr": 0.1}, extra_state={"rng": [1, 2]}
    )
    assert saved is not None
    code = """
import sys
sys.path.extend(sys.argv[2:])
import importlib.util, json, torch
assert importlib.util.find_spec("ckpt_lib") is None, "our code is on the path"
payload = torch.load(sys.argv[1], weights_only=True)
plain = {key: payload[key] for key in ("epoch", "step", "metrics", "config", "extra_state")}
print(json.dumps({"keys": sorted(payload), "plain": plain, "weight": payload["model_state_dict"]["0.weight"].tolist()}))
"""
    # Without the site module no .pth file is read, through which an editable installation would show.
    command = [sys.executable, "-I", "-S", "-c", code, str(payload_path(manager, saved)), *site.getsitepackages()]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=manager.config.checkpoint_dir, check=False)
    assert finished.returncode == 0, finished.stderr
    found = json.loads(finished.stdout)
    assert set(found["keys"]) == PAYLOAD_KEYS
    assert found["plain"] == {
        "epoch": 4,
        "step": 8,
        "metrics": {"val_loss": 0.5},
        "config": {"lr": 0.1},
        "extra_state": {"rng": [1, 2]},
    }
    assert found["weight"] == parts.model.state_dict()["0.weight"].tolist()


def test_save_optimizer_and_scheduler_may_be_switched_off(make_manager: MakeManager, parts: Parts) -> None:
    """The payload then holds None in their place, and loading the model alone works."""
    manager = make_manager(save_optimizer=False, save_scheduler=False)
    manager.save_checkpoint(**parts.kwargs(), epoch=1)
    payload = manager.load_checkpoint("latest", model=build(5).model)
    assert payload["optimizer_state_dict"] is None
    assert payload["scheduler_state_dict"] is None


def test_export_and_import_through_a_folder(make_manager: MakeManager, tmp_path: Path) -> None:
    """An export is a plain torch file with its manifest; importing it elsewhere gives the same checkpoint."""
    source, target = make_manager("a"), make_manager("b", checkpoint_dir=str(tmp_path / "other"))
    saved = save(source, 1, tags=["golden"], description="d")
    location = source.export_checkpoint(saved, tmp_path / "exports")
    assert Path(location) == tmp_path / "exports" / f"{saved}.pt"
    assert set(torch.load(location, weights_only=True)) == PAYLOAD_KEYS
    imported = target.import_checkpoint(location)
    assert imported == saved
    found = target.get_checkpoint(imported)
    assert (found.experiment_name, found.tags, found.description) == ("b", ("golden",), "d")
    assert found.checksum == source.get_checkpoint(saved).checksum
    assert target.validate_checkpoint(imported)
