"""Payloads of this library in the format ``safetensors``, without the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_lib.foreign.base import Facts, ForeignCheckpoint, StoredTensor
from ckpt_lib.foreign.json_files import number
from ckpt_lib.foreign.sources import FoundFiles
from ckpt_lib.formats.safetensors.naming import STATE_FILE
from ckpt_lib.formats.safetensors.reading import SafetensorsReader
from ckpt_lib.formats.structure.decoding import TensorRef
from ckpt_lib.state.tree import map_leaves

_START = b'{"format":"safetensors"'


class OwnSafetensorsFolder:
    """A folder that a checkpoint in the format ``safetensors`` lies in."""

    name = "ckpt-safetensors"

    def recognises(self, files: FoundFiles) -> bool:
        return STATE_FILE in files.sizes_bytes and files.start(STATE_FILE).replace(b" ", b"").startswith(_START)

    def open(self, files: FoundFiles) -> ForeignCheckpoint:
        reader = SafetensorsReader(files)
        outline = reader.outline()
        build = reader.builder()

        def stored(value: Any) -> Any:
            if not isinstance(value, TensorRef):
                return value
            dtype, shape, memory = reader.described(value)
            return StoredTensor(dtype, shape, memory, read=lambda: build(value))

        payload: dict[str, Any] = map_leaves(outline, stored)
        return ForeignCheckpoint(
            kind=self.name,
            title="a checkpoint of this library in the format safetensors",
            files=files,
            contents=payload,
            payload=payload,
            facts=facts_of(payload),
        )


def facts_of(payload: Mapping[str, Any]) -> Facts:
    """Return what a payload of this library says about itself."""
    epoch, step, metrics, config = (payload.get(key) for key in ("epoch", "step", "metrics", "config"))
    numbers = {name: number(value) for name, value in metrics.items()} if isinstance(metrics, dict) else {}
    return Facts(
        writer="prefect-checkpoints",
        epoch=epoch if type(epoch) is int else None,
        step=step if type(step) is int else None,
        metrics={name: float(value) for name, value in numbers.items() if value is not None},
        config=config if isinstance(config, dict) else {},
    )
