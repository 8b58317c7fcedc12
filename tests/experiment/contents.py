"""What the explored actors find at first: manifests, and the files of checkpoints in every state."""

from __future__ import annotations

import hashlib
from typing import Any

import xxhash

from ckpt_lib.core.manifest import Claim, FileEntry, Manifest
from ckpt_lib.core.names import CheckpointId
from ckpt_lib.core.owners import Owner
from ckpt_lib.experiment.layout import key_name
from ckpt_lib.experiment.pointers import Pointer
from tests.experiment.explorer import MOMENT

U, W, Z = ("a" * 32, "b" * 32, "c" * 32)
X, Y, V = (f"checkpoint_epoch_000{number}_step_000000_20231201_143022" for number in (1, 2, 3))


def manifest(checkpoint_id: str = X, uid: str = U, **facts: Any) -> Manifest:
    epoch = CheckpointId.parse(checkpoint_id).epoch
    data = uid.encode()
    file = FileEntry(
        name=f"{checkpoint_id}.pt",
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        chunk_size_bytes=8 * 2**20,
        chunk_xxh3_128=(xxhash.xxh3_128_hexdigest(data),),
    )
    fields: dict[str, Any] = {
        "checkpoint_id": checkpoint_id,
        "uid": uid,
        "claim": "f" * 16,
        "state": "live",
        "revision": "f" * 16,
        "timestamp": MOMENT,
        "epoch": epoch,
        "step": 0,
        "model_name": "Net",
        "experiment_name": "e",
        "sequence": epoch,
        "format": "torch",
        "files": (file,),
    }
    return Manifest(**(fields | facts))


def stored(*manifests: Manifest, folder: str = "e") -> dict[str, bytes]:
    """Return the files of checkpoints."""
    content = {f"{folder}/{item.checkpoint_id}.json": item.to_bytes() for item in manifests}
    return content | {f"{folder}/{item.files[0].name}": item.uid.encode() for item in manifests}


def deleted(checkpoint_id: str = X, uid: str = U, **facts: Any) -> Manifest:
    return manifest(checkpoint_id, uid, state="deleted", deleted_at=MOMENT, **facts)


PAIR = stored(manifest(X), manifest(Y, W))
SOURCE = stored(manifest(X), folder="source")
DEAD = Owner(host="h", system="s", pid=99, started="1")
UNFINISHED = {
    f"e/{X}.json": Claim(
        checkpoint_id=X, uid=Z, claim="f" * 16, revision="f" * 16, state="saving", owner=DEAD, files=(f"{X}.pt",)
    ).to_bytes(),
    f"e/{X}.pt": Z.encode(),
}
PURGING = stored(manifest(X, state="purging"), manifest(Y, W))
KEY = {f"e/{key_name('k')}": Pointer(checkpoint_id=X, uid=U, revision="f" * 16).model_dump_json().encode()}
DELETED = stored(deleted(), manifest(Y, W))
