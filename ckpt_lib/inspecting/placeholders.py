"""The payload of a stored checkpoint as its format describes it: facts about its tensors in place of them."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

import torch

from ckpt_lib.core.manifest import Manifest
from ckpt_lib.foreign import Facts, ForeignCheckpoint, FoundFiles, Region, StoredTensor
from ckpt_lib.formats import Format, PayloadSource, format_named, is_compressed, plain_source
from ckpt_lib.formats.safetensors.format import SafetensorsFormat
from ckpt_lib.formats.safetensors.reading import SafetensorsReader
from ckpt_lib.formats.structure.decoding import TensorRef
from ckpt_lib.formats.torch.tensor_specs import TensorSpec
from ckpt_lib.state.tree import tensors_in


def stored_checkpoint(files: FoundFiles, manifest: Manifest) -> ForeignCheckpoint:
    """Describe a payload by its format, compressed or not. No tensor is read, and no digest is compared.

    Raises what :meth:`ckpt_lib.formats.Format.inspect` raises, and
    :class:`~ckpt_lib.errors.UnsupportedFormatError` where the format is not installed.
    """
    stored = format_named(manifest.format)
    source: PayloadSource = files
    if is_compressed(manifest.format):
        source, stored = plain_source(stored, files)
    payload = _Placeholders(stored, source).payload
    library = manifest.libraries.get("prefect-checkpoints", "")
    facts = Facts(
        writer=f"prefect-checkpoints {library}".strip(),
        epoch=manifest.epoch,
        step=manifest.step,
        metrics=manifest.metrics,  # type: ignore[arg-type]  # ours may be text as well
        config=manifest.config,
        saved_at=manifest.timestamp,
    )
    title = f"a checkpoint of this library, in the format {manifest.format}"
    return ForeignCheckpoint(
        kind=manifest.format, title=title, files=files, contents=payload, payload=payload, facts=facts
    )


class _Placeholders:
    """Turns what a format puts in the place of tensors into the facts about them."""

    def __init__(self, stored: Format, source: PayloadSource) -> None:
        self._format = stored
        self._source = source
        self._reader = SafetensorsReader(source) if isinstance(stored, SafetensorsFormat) else None
        outline = self._reader.outline() if self._reader else stored.inspect(source)
        self._regions: dict[str, list[Region]] = {}
        for part in source.names:
            file = source.open(part)
            for name, ranges in stored.tensor_ranges(source, part).items():
                self._regions.setdefault(name, []).extend(Region(file, *found) for found in ranges)
        self.payload: dict[str, Any] = self._converted(outline, "")

    def _converted(self, value: Any, name: str) -> Any:
        before = f"{name}." if name else ""
        if isinstance(value, dict):
            return {key: self._converted(item, f"{before}{key}") for key, item in value.items()}
        if isinstance(value, list | tuple) and not isinstance(value, torch.Size):
            return [self._converted(item, f"{before}{number}") for number, item in enumerate(value)]
        return self._described(value, name)

    def _described(self, value: Any, name: str) -> Any:
        if isinstance(value, TensorSpec):
            storage, (offset_bytes, _) = value.storage, value.range_bytes
            return self._tensor(
                name,
                value.dtype,
                value.size,
                storage.record,
                offset_bytes=offset_bytes,
                memory_bytes=storage.size_bytes,
            )
        if self._reader and isinstance(value, TensorRef):
            return self._tensor(name, *self._reader.described(value), offset_bytes=self._offset_of(name))
        # A tensor without data, of a payload that only torch can read; or what another package's format puts there.
        dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", ())
        return self._tensor(name, dtype, tuple(shape), id(value)) if isinstance(dtype, torch.dtype) else value

    def _offset_of(self, name: str) -> int:
        return self._regions[name][0].start if name in self._regions else 0

    def _tensor(
        self,
        name: str,
        dtype: torch.dtype,
        shape: tuple[int, ...],
        memory: Hashable,
        *,
        offset_bytes: int = 0,
        memory_bytes: int | None = None,
    ) -> StoredTensor:
        regions = self._regions.get(name, [])
        size_bytes = math.prod(shape) * dtype.itemsize
        is_whole = len(regions) == 1 and regions[0].stop - regions[0].start == size_bytes
        return StoredTensor(
            dtype=dtype,
            shape=shape,
            memory=memory,
            read=lambda: tensors_in(self._format.read(self._source, keys=[name]))[0],
            offset_bytes=offset_bytes,
            regions=lambda: regions if is_whole else [],
            memory_bytes=memory_bytes,
        )
