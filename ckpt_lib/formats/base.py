"""The contract of a payload format."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from ckpt_lib.stream import HashingWriter, VerifiedFile

Payload = dict[str, Any]
"""``model_state_dict``, ``optimizer_state_dict``, ``scheduler_state_dict``, ``epoch``, ``step``, ``metrics``,
``config`` and ``extra_state``. A part that was not saved is ``None``."""


class PayloadSink(Protocol):
    """The sink that a format writes the files of one payload to."""

    def open(self, name: str = "") -> AbstractContextManager[HashingWriter]:
        """Begin a file, which is hashed on its way and ends with the context.

        ``name`` is a path below the payload's folder, such as ``model/weights.bin``; it is empty for a format that
        writes a single file. Raises :class:`~ckpt_lib.errors.UnsupportedFormatError` for any other name and for one
        that was written before, and the errors of the store.
        """
        ...


class PayloadSource(Protocol):
    """The files of one payload, for a format to read. Whoever made the source closes them."""

    @property
    def names(self) -> Sequence[str]:
        """The names that the files had when they were written."""
        ...

    def open(self, name: str = "") -> VerifiedFile:
        """Return a file at its start, the same one each time, which verifies its bytes before use.

        Raises :class:`~ckpt_lib.errors.CorruptCheckpointError` for a file that the payload does not have or whose size
        is wrong, ``FileNotFoundError`` for one that is missing, and the errors of the store.
        """
        ...


class Layout(Protocol):
    """A payload that is ready to be written."""

    @property
    def size_bytes(self) -> int:
        """An upper bound of the size of all files, as close as the format can tell."""
        ...

    def write(self, sink: PayloadSink) -> None:
        """Write each file from start to end, without a second copy of the payload in memory. May be called again."""
        ...


class Format(Protocol):
    """Writes a payload as one file or as a folder of files, and reads it back."""

    @property
    def name(self) -> str:
        """The name of this format in manifests."""
        ...

    @property
    def suffix(self) -> str:
        """The payload file's suffix with its dot, or ``/`` for a format that writes a folder."""
        ...

    def prepare(self, payload: Mapping[str, Any]) -> Payload:
        """Return the payload with values in the types that this format stores. Tensors pass by reference.

        Raises :class:`~ckpt_lib.errors.UnsupportedStateError`, which names the place, for a value that could not be
        read back.
        """
        ...

    def lay_out(self, payload: Payload) -> Layout:
        """Decide what the files of a prepared payload will hold. No tensor is copied, and no file is needed yet.

        Raises :class:`~ckpt_lib.errors.UnsupportedStateError` for a payload that no reader would accept.
        """
        ...

    def read(
        self,
        source: PayloadSource,
        *,
        map_location: Any = "cpu",
        trust_pickle: bool = False,
        keys: Collection[str] | None = None,
    ) -> Payload:
        """Read a payload, or the parts of it that ``keys`` name.

        Tensors may share the memory of the files. With ``keys``, a format may open, read and verify only what they
        need; :func:`ckpt_lib.formats.select` takes them out of a whole payload.

        Raises :class:`~ckpt_lib.errors.UnsafePayloadError` when reading would run stored code and ``trust_pickle`` is
        false, and :class:`~ckpt_lib.errors.ConfigError` for a key that names nothing.
        """
        ...

    def inspect(self, source: PayloadSource) -> Payload:
        """Return the payload of :meth:`read` with a placeholder for each tensor, to tell whether it can be read.

        No stored code runs, and no tensor's bytes are read. The files of ``source`` may not verify anything. Raises
        :class:`~ckpt_lib.errors.UnsafePayloadError` for a payload that :meth:`read` takes only with ``trust_pickle``,
        and :class:`~ckpt_lib.errors.CorruptCheckpointError` for files that are no payload.
        """
        ...

    def tensor_ranges(self, source: PayloadSource, name: str = "") -> dict[str, list[tuple[int, int]]]:
        """Map the dotted name of each tensor in the file ``name`` to its byte ranges there.

        Only the structure is read. Empty for a file without tensors, and if the format cannot tell.

        A tensor's name is ``model_state_dict.layer.weight``, for example. Raises
        :class:`~ckpt_lib.errors.CorruptCheckpointError` when the structure is damaged.
        """
        ...
