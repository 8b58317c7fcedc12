"""The contract of a payload format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, BinaryIO, Protocol

from ckpt_lib.stream import HashingWriter

Payload = dict[str, Any]
"""``model_state_dict``, ``optimizer_state_dict``, ``scheduler_state_dict``, ``epoch``, ``step``, ``metrics``,
``config`` and ``extra_state``. What was not saved is ``None``."""


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

    def write(self, payload: Payload, stream: HashingWriter) -> None:
        """Write a prepared payload from start to end, without holding a second copy of it."""
        ...

    def read(self, source: BinaryIO, *, map_location: Any = "cpu", trust_pickle: bool = False) -> Payload:
        """Read a payload whose bytes have been verified.

        Raises :class:`~ckpt_lib.errors.UnsafePayloadError` when that would run stored code and ``trust_pickle`` is
        false.
        """
        ...
