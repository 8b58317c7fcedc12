"""The ``safetensors`` format: tensors in files that any reader of safetensors opens, the rest in JSON, no pickle."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ckpt_lib.errors import CorruptCheckpointError
from ckpt_lib.formats.base import Payload, PayloadSource
from ckpt_lib.formats.gc_pause import CollectionPause
from ckpt_lib.formats.placing import Place
from ckpt_lib.formats.preparing import prepare, too_deep
from ckpt_lib.formats.safetensors.naming import SUFFIX
from ckpt_lib.formats.safetensors.reading import SafetensorsReader
from ckpt_lib.formats.safetensors.writing import FolderLayout
from ckpt_lib.formats.structure.values import check_spelling


class SafetensorsFormat:
    """Reads and writes folders of safetensors files."""

    name = "safetensors"
    suffix = "/"

    def prepare(self, payload: Mapping[str, Any]) -> Payload:
        """Check that every value has a spelling. NumPy scalars become Python numbers."""
        return prepare(payload, check_spelling)

    def lay_out(self, payload: Payload) -> FolderLayout:
        """Lay out the files; see :mod:`ckpt_lib.formats.safetensors.writing`."""
        try:
            return FolderLayout(payload)
        except RecursionError as error:
            raise too_deep() from error

    def read(
        self,
        source: PayloadSource,
        *,
        map_location: Any = "cpu",
        trust_pickle: bool = False,  # noqa: ARG002 - there is none
        keys: Collection[str] | None = None,
    ) -> Payload:
        """Read a payload as views of its verified files. With ``keys``, only what they need is opened and verified.

        Raises :class:`~ckpt_lib.errors.ConfigError` for a device that this machine does not have.
        """
        place = Place(map_location)
        if keys is not None:
            return SafetensorsReader(source).read(keys, place)
        _require_all(source)
        with CollectionPause():  # nothing is left that takes long
            return SafetensorsReader(source).read(keys, place)

    def inspect(self, source: PayloadSource) -> Payload:
        """Return the structure that every read begins with, checked against the headers of all files."""
        return SafetensorsReader(source).outline()

    def tensor_ranges(self, source: PayloadSource, name: str = "") -> dict[str, list[tuple[int, int]]]:
        """Map tensor names to bytes of one of the files. The structure says which name stands for which bytes."""
        return SafetensorsReader(source).tensor_ranges(name) if name.endswith(SUFFIX) else {}


def _require_all(source: PayloadSource) -> None:
    """Verify every byte. Raises :class:`CorruptCheckpointError` with the damage of all files."""
    failures = []
    for name in source.names:
        try:
            source.open(name).require_all()
        except CorruptCheckpointError as error:
            failures.append(error)
    if failures:
        failures[0].damages = tuple(damage for error in failures for damage in error.damages)
        raise failures[0]
