"""Plants checkpoints of any format on any kind of store, as an attacker would who may write there."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.core.manifest import Compression, FileEntry, Manifest
from ckpt_lib.formats import format_named
from ckpt_lib.formats.in_memory import Files, encoded
from ckpt_lib.stream import StreamDigest
from tests.compression.files import stored
from tests.torture.attacker import EXPERIMENT, PLANTED_ID, manifest_for, small_payload
from tests.torture.settings import Setting, Site

PLAIN_BYTES = len(encoded(format_named("torch"), format_named("torch").prepare(small_payload()))[""])
"""How large the small payload is in the one file of the format torch, before that is compressed."""


def codec_of(setting: Setting) -> str:
    """The codec of a compressed format, or nothing."""
    return setting.format.partition("+")[2]


def has_pickle(setting: Setting) -> bool:
    """Whether payloads of the format hold a pickle, compressed or not."""
    return setting.format.partition("+")[0] == "torch"


def sound_files(setting: Setting) -> Files:
    """The files of a small payload, as a save writes them."""
    payload_format = format_named(setting.format)
    return encoded(payload_format, payload_format.prepare(small_payload()))


def as_stored(setting: Setting, plain: bytes) -> bytes:
    """One file as the format's codec stores it."""
    codec = codec_of(setting)
    return stored([plain], codec, frame_size_bytes=2**18, workers=1)[0] if codec else plain


def payload_names(setting: Setting, files: Files) -> dict[str, str]:
    """What each file is called beside the manifest."""
    return {name: f"{PLANTED_ID}/{name}" if name else f"{PLANTED_ID}{setting.suffix}" for name in files}


def manifest_of(
    setting: Setting, files: Files, *, plain_size_bytes: int = 0, names: Mapping[str, str] | None = None, **facts: Any
) -> Manifest:
    """A manifest by which the files are intact, under any names that it is told."""
    called = {**payload_names(setting, files), **(names or {})}
    codec = codec_of(setting)
    compression = Compression(codec=codec, plain_size_bytes=plain_size_bytes) if codec else None
    entries = []
    for name, data in files.items():
        digest = StreamDigest()
        digest.update(data)
        entries.append(FileEntry(name=called[name], **vars(digest.finish()), compression=compression))
    return manifest_for(b"", format=setting.format, files=tuple(entries), **facts)


def plant_files(site: Site, setting: Setting, files: Files, manifest: bytes, *, folder: str = "store/run") -> None:
    """Put a payload and its manifest into the folder of an experiment."""
    for name, called in payload_names(setting, files).items():
        site.write(site.root / folder / called, files[name])
    site.write(site.root / folder / f"{PLANTED_ID}.json", manifest)


def open_planted(site: Site, setting: Setting, store: str = "store", **options: Any) -> CheckpointManager:
    """The experiment in which a checkpoint was planted."""
    config = CheckpointConfig(checkpoint_dir=site.url(store), **{**setting.options, **options})
    return CheckpointManager(config, EXPERIMENT)


def is_original(payload: object) -> bool:
    """Whether the state is just that of the sound payload: an attack may alter what no reader looks at."""
    if not isinstance(payload, dict):
        return False
    state, wanted = payload["model_state_dict"], small_payload()["model_state_dict"]
    return state.keys() == wanted.keys() and all(torch.equal(state[name], wanted[name]) for name in wanted)


def digest_of(files: Mapping[Any, bytes]) -> dict[str, str]:
    """What lies somewhere, to be compared with what lies there later."""
    return {str(path): hashlib.sha256(data).hexdigest() for path, data in files.items()}
