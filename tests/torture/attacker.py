"""Makes checkpoints as an attacker would who may write to the store: any payload, and a manifest that fits it."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.core.manifest import FileEntry, Manifest
from ckpt_lib.core.names import CheckpointId
from ckpt_lib.stream import StreamDigest

MOMENT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
PLANTED_ID = str(CheckpointId(1, 1, MOMENT))
EXPERIMENT = "run"


def small_payload() -> dict[str, Any]:
    """What is sound about a planted checkpoint."""
    return {
        "model_state_dict": {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2)},
        "optimizer_state_dict": None,
        "scheduler_state_dict": None,
        "epoch": 1,
        "step": 1,
        "metrics": {},
        "config": {},
        "extra_state": {},
    }


def torch_file(payload: Any) -> bytes:
    """What plain torch writes."""
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    return buffer.getvalue()


def archive_of(structure: bytes, records: dict[str, bytes] | None = None, method: int = zipfile.ZIP_STORED) -> bytes:
    """A torch file with this pickle, and these storages."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("archive/data.pkl", structure)
        archive.writestr("archive/byteorder", b"little")
        for name, data in (records if records is not None else {"data/0": bytes(32)}).items():
            archive.writestr(f"archive/{name}", data)
        archive.writestr("archive/version", b"3\n")
    return buffer.getvalue()


def manifest_for(payload: bytes, **facts: Any) -> Manifest:
    """A manifest by which the payload is intact."""
    digest = StreamDigest()
    digest.update(payload)
    named = {
        "checkpoint_id": PLANTED_ID,
        "timestamp": MOMENT,
        "epoch": 1,
        "step": 1,
        "model_name": "Linear",
        "experiment_name": EXPERIMENT,
        "sequence": 1,
        "uid": "0123456789abcdef" * 2,
        "claim": "0123456789abcdef",
        "state": "live",
        "format": "torch",
        "files": (FileEntry(name=f"{PLANTED_ID}.pt", **digest.finish().__dict__),),
        **facts,
    }
    return Manifest(**named)


def resigned(fields: dict[str, Any]) -> bytes:
    """A manifest's canonical form with its digest, by what docs/FORMAT.md says and by none of our code."""
    fields = {name: value for name, value in fields.items() if name != "manifest_sha256"}
    body = json.dumps(fields, indent=2, sort_keys=True, ensure_ascii=False).encode()
    signed = {**fields, "manifest_sha256": hashlib.sha256(body).hexdigest()}
    return json.dumps(signed, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n"


def plant(store: Path, payload: bytes, manifest: bytes | None = None) -> CheckpointManager:
    """Put a checkpoint into a store, and open its experiment."""
    folder = store / EXPERIMENT
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{PLANTED_ID}.pt").write_bytes(payload)
    (folder / f"{PLANTED_ID}.json").write_bytes(manifest or manifest_for(payload).to_bytes())
    return open_run(store)


def open_run(store: Path, **options: Any) -> CheckpointManager:
    return CheckpointManager(CheckpointConfig(checkpoint_dir=str(store), **options), EXPERIMENT)


def contents(folder: Path) -> dict[str, bytes | str]:
    """Every name below a folder with what it holds; links are told and not followed."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        found[name] = (
            f"-> {path.readlink()}" if path.is_symlink() else path.read_bytes() if path.is_file() else "folder"
        )
    return found
