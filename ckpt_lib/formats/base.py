"""The contract of a payload format."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, BinaryIO, Protocol

from ckpt_lib.stream import HashingWriter, VerifiedFile

Payload = dict[str, Any]
"""``model_state_dict``, ``optimizer_state_dict``, ``scheduler_state_dict``, ``epoch``, ``step``, ``metrics``,
``config`` and ``extra_state``. A part that was not saved is ``None``."""


class Layout(Protocol):
    """A payload that is ready to be written."""

    @property
    def size_bytes(self) -> int:
        """An upper bound of the file's size, as close as the format can tell."""
        ...

    def write(self, stream: HashingWriter) -> None:
        """Write the file from start to end, without a second copy of the payload in memory. May be called again."""
        ...


class Format(Protocol):
    """Writes a payload as one stream of bytes and reads it back."""

    @property
    def name(self) -> str:
        """The name of this format in manifests."""
        ...

    @property
    def suffix(self) -> str:
        """The payload file's suffix, with its dot."""
        ...

    def prepare(self, payload: Mapping[str, Any]) -> Payload:
        """Return the payload with values in the types that this format stores. Tensors pass by reference.

        Raises :class:`~ckpt_lib.errors.UnsupportedStateError`, which names the place, for a value that could not be
        read back.
        """
        ...

    def lay_out(self, payload: Payload) -> Layout:
        """Decide what the file of a prepared payload will hold. No tensor is copied, and no file is needed yet.

        Raises :class:`~ckpt_lib.errors.UnsupportedStateError` for a payload that no reader would accept.
        """
        ...

    def read(
        self,
        source: BinaryIO,
        *,
        map_location: Any = "cpu",
        trust_pickle: bool = False,
        keys: Collection[str] | None = None,
    ) -> Payload:
        """Read a payload, or the parts of it that ``keys`` name, from a file that verifies its bytes before use.

        ``source`` is a :class:`~ckpt_lib.stream.VerifiedFile`, whose memory tensors may share. With ``keys``, a format
        may read and verify only what they need; :func:`ckpt_lib.formats.select` takes them out of a whole payload.

        Raises :class:`~ckpt_lib.errors.UnsafePayloadError` when reading would run stored code and ``trust_pickle`` is
        false, and :class:`~ckpt_lib.errors.ConfigError` for a key that names nothing.
        """
        ...

    def inspect(self, source: VerifiedFile) -> Payload:
        """Return the payload of :meth:`read` with a placeholder for each tensor, to tell whether it can be read.

        No stored code runs, and no tensor's bytes are read. ``source`` may be opened without digests. Raises
        :class:`~ckpt_lib.errors.UnsafePayloadError` for a payload that :meth:`read` takes only with ``trust_pickle``,
        and :class:`~ckpt_lib.errors.CorruptCheckpointError` for a file that is no payload.
        """
        ...

    def tensor_ranges(self, source: VerifiedFile) -> dict[str, list[tuple[int, int]]]:
        """Map the dotted name of each tensor to its byte ranges in the file; ``{}`` if the format cannot tell.

        Only the structure is read. A name is ``model_state_dict.layer.weight``, for example. Raises
        :class:`~ckpt_lib.errors.CorruptCheckpointError` when the structure is damaged.
        """
        ...
