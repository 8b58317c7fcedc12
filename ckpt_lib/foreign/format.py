"""``ForeignFormat``: the files of another program as a payload, where they lie. It reads, and never writes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NoReturn

import torch

from ckpt_lib.errors import UnsupportedFormatError
from ckpt_lib.foreign.base import StoredTensor
from ckpt_lib.foreign.opening import describe_checkpoint
from ckpt_lib.foreign.payloads import with_payload
from ckpt_lib.foreign.sources import FoundFiles
from ckpt_lib.foreign.tree import materialise
from ckpt_lib.formats import Layout, Payload, PayloadSource, select
from ckpt_lib.formats.placing import Place
from ckpt_lib.formats.safetensors.header import read_header
from ckpt_lib.formats.torch.reading import tensor_ranges
from ckpt_lib.state.tree import map_leaves
from ckpt_lib.stream import VerifiedFile

NAME = "foreign"


class SourceFiles(FoundFiles):
    """The files of a stored payload as those of any checkpoint. What reads them gets verified bytes."""

    def __init__(
        self,
        source: PayloadSource,
        title: str,
        *,
        folder: str = "",
        path: str | None = None,
        modified_seconds: Mapping[str, float] | None = None,
    ) -> None:
        self._source = source
        self._folder = folder
        sizes = {
            name.removeprefix(folder): source.open(name).size_bytes for name in source.names if name.startswith(folder)
        }
        super().__init__(path or title, sizes, self._open_source, title=title, modified_seconds=modified_seconds)

    def _open_source(self, name: str) -> VerifiedFile:
        return self._source.open(self._folder + name)

    def open(self, name: str = "") -> VerifiedFile:
        """Return a file at its start, the same one each time; whoever made the source closes it."""
        return self._source.open(self._folder + name)

    def below(self, folder: str) -> FoundFiles:
        path = f"{self.path}/{folder}"
        return SourceFiles(self._source, folder.rpartition("/")[2], folder=f"{self._folder}{folder}/", path=path)


class ForeignFormat:
    """Reads what another program wrote, by what :mod:`ckpt_lib.foreign` knows of its kind.

    ``title`` is the name that the file or folder had where it was found, and ``key_map`` what its parts are.
    """

    name = NAME
    suffix = ".bin"

    def __init__(self, title: str = "", key_map: Mapping[str, str] | None = None) -> None:
        self._title = title
        self._key_map = key_map

    def prepare(self, payload: Mapping[str, Any]) -> Payload:  # noqa: ARG002
        """Raise :class:`~ckpt_lib.errors.UnsupportedFormatError`: nothing is written as another program does."""
        _refuse_writing()

    def lay_out(self, payload: Payload) -> Layout:  # noqa: ARG002
        """Raise :class:`~ckpt_lib.errors.UnsupportedFormatError`, as :meth:`prepare` does."""
        _refuse_writing()

    def read(
        self,
        source: PayloadSource,
        *,
        map_location: Any = "cpu",
        trust_pickle: bool = False,  # noqa: ARG002
        keys: Collection[str] | None = None,
    ) -> Payload:
        """Read a payload, or parts of it. No stored code is run, whatever ``trust_pickle`` allows.

        Raises :class:`~ckpt_lib.errors.NotACheckpointError` or :class:`~ckpt_lib.errors.UnsafePayloadError` for files
        that no payload can be made of.
        """
        place = Place(map_location)
        payload = materialise(select(self._outline(source), keys))
        return payload if place.is_memory_of_file else _placed(payload, place)

    def inspect(self, source: PayloadSource) -> Payload:
        return map_leaves(self._outline(source), _placeholder)  # type: ignore[no-any-return]

    def tensor_ranges(self, source: PayloadSource, name: str = "") -> dict[str, list[tuple[int, int]]]:
        """Map the tensors of a file to its bytes, by their names in the file; empty where the kind cannot tell."""
        file = source.open(name)
        if file.read(2) == b"PK":
            file.seek(0)
            return tensor_ranges(file)
        file.seek(0)
        if name.endswith(".safetensors") or self._title.endswith(".safetensors"):
            return {tensor: [(entry.start, entry.stop)] for tensor, entry in read_header(file).entries.items()}
        return {}

    def _outline(self, source: PayloadSource) -> Payload:
        found = with_payload(describe_checkpoint(SourceFiles(source, self._title)), self._key_map)
        return dict(found.payload or {})


def _refuse_writing() -> NoReturn:
    raise UnsupportedFormatError(
        "a checkpoint that is stored as another program wrote it cannot be written anew",
        hint="Import a copy of it, without --in-place: that can be thinned and compressed.",
    )


def _placeholder(value: Any) -> Any:
    if isinstance(value, StoredTensor):
        return torch.empty(value.shape, dtype=value.dtype, device="meta")
    return value


def _placed(payload: Payload, place: Place) -> Payload:
    """Bring tensors to a device. Those that share memory do so there."""
    moved: dict[tuple[int, int], torch.Tensor] = {}

    def move(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
            return value
        storage = value.untyped_storage()
        key = (storage.data_ptr(), storage.nbytes())
        if key not in moved:
            moved[key] = place(torch.empty(0, dtype=torch.uint8, device="cpu").set_(storage))
        target = moved[key].untyped_storage()
        empty = torch.empty(0, dtype=value.dtype, device=target.device)
        return empty.set_(target, value.storage_offset(), value.shape, value.stride())

    return map_leaves(payload, move)  # type: ignore[no-any-return]
