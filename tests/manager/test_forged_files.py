"""Files made by hand: no code in them runs, and no manifest leads to another file."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from torch import nn

from ckpt_lib import CheckpointManager
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.errors import (
    CheckpointError,
    IntegrityError,
    NoValidCheckpointError,
    UnsafePayloadError,
    UnsupportedFormatError,
    UnsupportedSchemaError,
)
from tests.helpers import experiment_folder, ids
from tests.manager.hostile import MISSING_ID


def _write_checkpoint(
    manager: CheckpointManager, checkpoint_id: str, payload: bytes, **changes: Any
) -> tuple[Path, Path]:
    """A payload of any content with a manifest that fits it: what someone can make who knows the format."""
    entry = {
        "name": f"{checkpoint_id}.pt",
        "size_bytes": len(payload),
        "sha256": hashlib.sha256(payload).hexdigest(),
        "chunk_size_bytes": 2**23,
        "chunk_xxh3_128": [xxhash.xxh3_128_hexdigest(payload)] if payload else [],
    }
    facts = {
        "checkpoint_id": checkpoint_id,
        "timestamp": "2023-12-01T14:30:22Z",
        "epoch": 1,
        "step": 0,
        "model_name": "Linear",
        "experiment_name": "run",
        "sequence": 1,
        "uid": "0" * 32,
        "claim": "0" * 16,
        "state": "live",
        "format": "torch",
        "files": [entry],
    }
    folder = experiment_folder(manager)
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / f"{checkpoint_id}.pt", folder / f"{checkpoint_id}.json"
    paths[0].write_bytes(payload)
    paths[1].write_bytes(Manifest.model_validate({**facts, **changes}).to_bytes())
    return paths


FORGED_ID = "checkpoint_epoch_0001_step_000000_20231201_143022"


class _Exploit:
    """Creates the canary when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


def test_a_pickle_with_code_runs_only_when_it_is_trusted_by_name(manager: CheckpointManager, tmp_path: Path) -> None:
    """A malicious payload with fitting digests is no valid one, and no door but one by its name runs its code."""
    canary = tmp_path / "canary"
    content = io.BytesIO()
    torch.save({"model_state_dict": {}, "extra_state": _Exploit(canary)}, content)
    _write_checkpoint(manager, FORGED_ID, content.getvalue())
    assert [damage.kind for damage in manager.validate_checkpoint(FORGED_ID).damages] == ["unloadable"]
    with pytest.raises(NoValidCheckpointError, match="more than tensors"):
        manager.resume()
    calls: tuple[Callable[[], object], ...] = (
        lambda: manager.load_checkpoint(FORGED_ID),
        lambda: manager.load_checkpoint("latest", model=nn.Linear(2, 1)),
        lambda: manager.compare_checkpoints([FORGED_ID, FORGED_ID], tensors=True),
    )
    for call in calls:
        with pytest.raises(UnsafePayloadError, match="trust_pickle=True"):
            call()
    exported = manager.export_checkpoint(FORGED_ID, tmp_path / "exports")
    facts = json.loads(Path(exported).with_suffix(".json").read_text())
    del facts["manifest_sha256"]
    Path(exported).with_suffix(".json").write_bytes(Manifest.model_validate({**facts, "uid": "1" * 32}).to_bytes())
    with pytest.raises(UnsafePayloadError, match="trust_pickle=True"):
        manager.import_checkpoint(exported)
    assert not canary.exists()
    manager.load_checkpoint(FORGED_ID, trust_pickle=True)
    assert canary.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a torch file",
        b"PK\x03\x04broken",
        b"PK\x05\x06" + bytes(18),
        b"\x80\x02}.",
        b"\x80\x02.",
        b"\x80\x02]q\x00.",
        pickle.dumps([1, 2]),
        b"\x1f\x8b\x08gzip",
        bytes(5_000),
    ],
    ids=lambda content: repr(content[:12]),
)
def test_a_payload_that_torch_did_not_write(manager: CheckpointManager, content: bytes) -> None:
    """Whatever an intact file holds, loading it ends in a typed error."""
    _write_checkpoint(manager, FORGED_ID, content)
    model = nn.Linear(2, 1)
    with pytest.raises(CheckpointError):
        manager.load_checkpoint(FORGED_ID, model=model)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"checkpoint_id": MISSING_ID}, IntegrityError),
        ({"schema_version": 99}, UnsupportedSchemaError),
        ({"format": "unheard-of"}, UnsupportedFormatError),
    ],
)
def test_manifests_that_say_something_else(
    manager: CheckpointManager, changes: dict[str, Any], expected: type[Exception]
) -> None:
    """Another id, a newer schema, an unknown format: each has its own error, and none of them breaks the list."""
    content = io.BytesIO()
    torch.save({"model_state_dict": {}}, content)
    payload, manifest = _write_checkpoint(manager, FORGED_ID, content.getvalue())
    fields = {**json.loads(manifest.read_bytes()), **changes}
    fields.pop("manifest_sha256")
    body = json.dumps(fields, indent=2, sort_keys=True, ensure_ascii=False).encode()
    fields["manifest_sha256"] = hashlib.sha256(body).hexdigest()
    manifest.write_bytes(json.dumps(fields, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n")
    with pytest.raises(expected):
        manager.load_checkpoint(FORGED_ID)
    assert len(ids(manager)) == (expected is UnsupportedFormatError)
    assert payload.exists()


@pytest.mark.parametrize("name", ["../../escape.pt", "/etc/passwd", "other.pt", f"{FORGED_ID}.json", f"{FORGED_ID}"])
def test_manifests_that_name_another_file(manager: CheckpointManager, name: str) -> None:
    """A manifest cannot lead to a file that is not its own payload, not even to have it deleted."""
    _, manifest = _write_checkpoint(manager, FORGED_ID, b"x")
    outside = Path(manager.config.checkpoint_dir).parent / "escape.pt"
    outside.write_bytes(b"x")
    fields = json.loads(manifest.read_bytes())
    fields["files"][0]["name"] = name
    fields.pop("manifest_sha256")
    body = json.dumps(fields, indent=2, sort_keys=True, ensure_ascii=False).encode()
    fields["manifest_sha256"] = hashlib.sha256(body).hexdigest()
    manifest.write_bytes(json.dumps(fields, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n")
    for call in (manager.load_checkpoint, manager.delete_checkpoint, manager.backup_checkpoint):
        with pytest.raises(IntegrityError):
            call(FORGED_ID)
    assert outside.read_bytes() == b"x"
