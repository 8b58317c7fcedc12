"""A format of several files, as another package would provide one: a folder of three torch files."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ckpt_lib.errors import CorruptCheckpointError
from ckpt_lib.formats import Payload, PayloadSink, PayloadSource, select
from ckpt_lib.formats.torch.format import TorchZipFormat
from ckpt_lib.formats.torch.reading import tensor_ranges
from ckpt_lib.formats.torch.writing import ArchiveLayout
from ckpt_lib.stream import VerifiedFile

NAME = "folder"
TENSORS, OPTIMIZER, METADATA = NAMES = ("tensors.pt", "training/optimizer.pt", "metadata.pt")
_FILES = {"model_state_dict": TENSORS, "optimizer_state_dict": OPTIMIZER}
"""Which file holds which part of the payload; anything else is in the metadata."""
_TORCH = TorchZipFormat()


class _Layout:
    def __init__(self, payload: Payload) -> None:
        parts = {name: {key: value for key, value in payload.items() if _file_of(key) == name} for name in NAMES}
        parts[METADATA]["order"] = list(payload)
        self._layouts = {name: ArchiveLayout(part) for name, part in parts.items()}

    @property
    def size_bytes(self) -> int:
        return sum(layout.size_bytes for layout in self._layouts.values())

    def write(self, sink: PayloadSink) -> None:
        for name, layout in self._layouts.items():
            with sink.open(name) as stream:
                layout.write_to(stream)


class FolderFormat:
    """Model, optimizer and the rest in a file each."""

    name = NAME
    suffix = "/"

    def prepare(self, payload: Mapping[str, Any]) -> Payload:
        return _TORCH.prepare(payload)

    def lay_out(self, payload: Payload) -> _Layout:
        return _Layout(payload)

    def read(
        self,
        source: PayloadSource,
        *,
        map_location: Any = "cpu",
        trust_pickle: bool = False,
        keys: Collection[str] | None = None,
    ) -> Payload:
        names = NAMES if keys is None else {METADATA, *(_file_of(key.partition(".")[0]) for key in keys)}
        parts = {
            name: _TORCH.read(_Part(source, name), map_location=map_location, trust_pickle=trust_pickle)
            for name in names
        }
        return select(_joined(parts), keys)

    def inspect(self, source: PayloadSource) -> Payload:
        return _joined({name: _TORCH.inspect(_Part(source, name)) for name in NAMES})

    def tensor_ranges(self, source: PayloadSource, name: str = "") -> dict[str, list[tuple[int, int]]]:
        return tensor_ranges(source.open(name))


class _Part:
    """One of the files as the whole payload of another format."""

    names = ("",)

    def __init__(self, source: PayloadSource, name: str) -> None:
        self._source = source
        self._name = name

    def open(self, name: str = "") -> VerifiedFile:
        assert name == ""
        return self._source.open(self._name)


def _file_of(key: str) -> str:
    return _FILES.get(key, METADATA)


def _joined(parts: Mapping[str, Payload]) -> Payload:
    """Return what the files that were read hold, in the order in which it was saved."""
    order = parts[METADATA].get("order")
    if not isinstance(order, list) or not all(isinstance(key, str) for key in order):
        raise CorruptCheckpointError("the metadata does not say what the payload holds")
    try:
        return {key: parts[_file_of(key)][key] for key in order if _file_of(key) in parts}
    except KeyError as error:
        raise CorruptCheckpointError(f"the payload lacks {error}") from error
