"""The contract of a payload format."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, BinaryIO, Protocol

from ckpt_lib.stream import HashingWriter, VerifiedFile

Payload = dict[str, Any]
"""``model_state_dict``, ``optimizer_state_dict``, ``scheduler_state_dict``, ``epoch``, ``step``, ``metrics``,
``config`` and ``extra_state``. What was not saved is ``None``."""


class Layout(Protocol):
    """A payload that is ready to be written."""

    @property
    def size_bytes(self) -> int:
        """How large the file will be: never less, and hardly more."""
        ...

    def write(self, stream: HashingWriter) -> None:
        """Write it from start to end, without holding a second copy of it. It may be called again."""
        ...


class Format(Protocol):
    """Writes a payload as one stream of bytes and reads it back."""

    @property
    def name(self) -> str:
        """What a manifest calls this format."""
        ...

    @property
    def suffix(self) -> str:
        """The payload file's suffix, with its dot."""
        ...

    def prepare(self, payload: Mapping[str, Any]) -> Payload:
        """Refuse, before anything is written, what could not be read back.

        Tensors pass by reference. Raises :class:`~ckpt_lib.errors.UnsupportedStateError` naming the place.
        """
        ...

    def lay_out(self, payload: Payload) -> Layout:
        """Settle what the file of a prepared payload will hold, before there is one; no tensor is copied.

        Raises :class:`~ckpt_lib.errors.UnsupportedStateError` for what no reader would take.
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
        """Read a payload, or what ``keys`` name of it, from a file that verifies its bytes before it gives them out.

        That is a :class:`~ckpt_lib.stream.VerifiedFile`, of which a format may also take views; with ``keys``, it need
        read and verify no more than these need. :func:`ckpt_lib.formats.select` takes them out of a whole payload.

        Raises :class:`~ckpt_lib.errors.UnsafePayloadError` when that would run stored code and ``trust_pickle`` is
        false, and :class:`~ckpt_lib.errors.ConfigError` for a key that stands for nothing.
        """
        ...

    def inspect(self, source: VerifiedFile) -> Payload:
        """The payload as :meth:`read` would give it, with something else in the place of each tensor.

        It says whether the payload can be read, so no code of the payload runs, and no tensor's bytes are read.
        ``source`` may be opened without digests. Raises :class:`~ckpt_lib.errors.UnsafePayloadError` for what
        :meth:`read` refuses unless ``trust_pickle`` is set, and :class:`~ckpt_lib.errors.CorruptCheckpointError` for
        what is no payload.
        """
        ...

    def tensor_ranges(self, source: VerifiedFile) -> dict[str, list[tuple[int, int]]]:
        """Name of each tensor to its bytes in the file, reading no more than it takes to know; ``{}`` if it cannot.

        A name is dotted: ``model_state_dict.layer.weight``. Raises
        :class:`~ckpt_lib.errors.CorruptCheckpointError` when what says so is damaged.
        """
        ...
