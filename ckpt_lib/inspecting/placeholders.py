"""The payload of a stored checkpoint as its format describes it: facts about its tensors in place of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch

from ckpt_lib.core.manifest import Foreign, Manifest
from ckpt_lib.experiment.stored_payload import format_of
from ckpt_lib.foreign import Facts, ForeignCheckpoint, FoundFiles, Region, StoredTensor
from ckpt_lib.foreign.format import SourceFiles
from ckpt_lib.foreign.opening import describe_checkpoint
from ckpt_lib.foreign.payloads import with_payload
from ckpt_lib.foreign.storages import Storages
from ckpt_lib.formats import Format, PayloadSource, is_compressed, plain_source
from ckpt_lib.formats.safetensors.format import SafetensorsFormat
from ckpt_lib.formats.safetensors.reading import SafetensorsReader
from ckpt_lib.formats.structure.decoding import TensorRef
from ckpt_lib.formats.torch.archive import TorchArchive
from ckpt_lib.formats.torch.tensor_specs import TensorSpec
from ckpt_lib.state.tree import tensors_in


def stored_checkpoint(files: FoundFiles, manifest: Manifest) -> ForeignCheckpoint:
    """Describe a payload by its format, compressed or not. No tensor is read, and no digest is compared.

    Raises what :meth:`ckpt_lib.formats.Format.inspect` raises, and
    :class:`~ckpt_lib.errors.UnsupportedFormatError` where the format is not installed.
    """
    if manifest.foreign is not None:
        return _imported_in_place(files, manifest, manifest.foreign)
    stored = format_of(manifest)
    source: PayloadSource = files
    if is_compressed(manifest.format):
        source, stored = plain_source(stored, files)
    payload = _Placeholders(stored, source).payload
    library = manifest.libraries.get("prefect-checkpoints", "")
    facts = replace(_facts_of(manifest), writer=f"prefect-checkpoints {library}".strip())
    title = f"a checkpoint of this library, in the format {manifest.format}"
    return ForeignCheckpoint(
        kind=manifest.format, title=title, files=files, contents=payload, payload=payload, facts=facts
    )


def _imported_in_place(files: FoundFiles, manifest: Manifest, foreign: Foreign) -> ForeignCheckpoint:
    """Describe the files of another program as its kind does, and as they are loaded: by the key map of the import."""
    held = files.where({entry.part for entry in manifest.files}.__contains__)
    source = SourceFiles(held, foreign.title, path=files.path, modified_seconds=held.modified_seconds)
    found = with_payload(describe_checkpoint(source), foreign.key_map)
    return replace(
        found,
        title=f"{found.title}, imported in place",
        files=files,
        facts=replace(_facts_of(manifest), writer=found.facts.writer),
    )


def _facts_of(manifest: Manifest) -> Facts:
    return Facts(
        epoch=manifest.epoch,
        step=manifest.step,
        metrics=manifest.metrics,  # type: ignore[arg-type]  # ours may be text as well
        config=manifest.config,
        saved_at=manifest.timestamp,
    )


class _Placeholders:
    """Turns what a format puts in the place of tensors into the facts about them."""

    def __init__(self, stored: Format, source: PayloadSource) -> None:
        self._format = stored
        self._source = source
        self._reader = SafetensorsReader(source) if isinstance(stored, SafetensorsFormat) else None
        outline = self._reader.outline() if self._reader else stored.inspect(source)
        self._build = self._reader.builder() if self._reader else None
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
            return self._storages.stored(value)
        if self._reader and self._build and isinstance(value, TensorRef):
            read, offset_bytes = partial(self._build, value), self._offset_of(name)
            return self._tensor(name, *self._reader.described(value), read=read, offset_bytes=offset_bytes)
        # A tensor without data, of a payload that only torch can read; or what another package's format puts there.
        dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", ())
        if not isinstance(dtype, torch.dtype):
            return value
        memory, offset_bytes = _memory_of(value)
        read = partial(self._read_named, name)
        return self._tensor(name, dtype, tuple(shape), memory, read=read, offset_bytes=offset_bytes)

    def _read_named(self, name: str) -> torch.Tensor:
        return tensors_in(self._format.read(self._source, keys=[name]))[0]

    @cached_property
    def _storages(self) -> Storages:
        file = self._source.open()
        archive = TorchArchive(file)

        def range_of(record: str) -> tuple[int, int]:
            start = archive.start_of(record)
            return start, start + archive.record(record).size_bytes

        return Storages(file, range_of)

    def _offset_of(self, name: str) -> int:
        return self._regions[name][0].start if name in self._regions else 0

    def _tensor(
        self,
        name: str,
        dtype: torch.dtype,
        shape: tuple[int, ...],
        memory: Hashable,
        *,
        read: Callable[[], torch.Tensor],
        offset_bytes: int,
    ) -> StoredTensor:
        regions = self._regions.get(name, [])
        size_bytes = math.prod(shape) * dtype.itemsize
        is_whole = len(regions) == 1 and regions[0].stop - regions[0].start == size_bytes
        return StoredTensor(
            dtype=dtype,
            shape=shape,
            memory=memory,
            read=read,
            offset_bytes=offset_bytes,
            regions=lambda: regions if is_whole else [],
        )


def _memory_of(value: Any) -> tuple[Hashable, int]:
    """Return which memory a placeholder stands for, and where in it; those that stand for tied tensors share theirs."""
    if isinstance(value, TensorRef):
        return (value.group, value.name), 0
    if isinstance(value, torch.Tensor) and value.layout is torch.strided:
        return value.untyped_storage()._cdata, int(value.storage_offset()) * value.itemsize
    return id(value), 0
