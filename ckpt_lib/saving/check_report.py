"""``CheckReport``: what ``CheckpointManager.check`` found out about a state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ckpt_lib.formats import Format, Payload


@dataclass(frozen=True)
class Conversion:
    """A value that a load gives back as another type, and how many of its kind there are beside it."""

    place: str
    """The first one: ``extra_state['losses'][0]``."""
    given: str
    """Its type: ``numpy.float64``."""
    stored: str
    """The type that a load gives back: ``float``."""
    count: int = 1
    """How many elements of one list or dict are converted in the same way."""

    def __str__(self) -> str:
        more = f" and {self.count - 1:,} more" if self.count > 1 else ""
        return f"{self.place}{more}: {self.given} as {self.stored}"


@dataclass(frozen=True)
class CheckReport:
    """What a save of a state would store. Everything comes back as it is, but for the ``conversions``."""

    format: str
    """As a manifest names it: ``torch+planes``, for example."""
    size_bytes: int
    """At most so large would the payload be; before compression, if there is one."""
    tensors: int
    """How many tensors there are. Those that share memory count each."""
    tensor_bytes: int
    """The bytes of all tensors, as if none shared memory."""
    conversions: tuple[Conversion, ...] = ()


def report_of(given: Mapping[str, Any], prepared: Payload, plain: Format, stored: Format) -> CheckReport:
    """Try out whether a payload that ``plain`` has prepared comes back, and return what a save would store of it.

    Raises :class:`~ckpt_lib.errors.UnsupportedStateError`.
    """
    from ckpt_lib.formats.trial import check_read_back
    from ckpt_lib.state.conversions import conversions
    from ckpt_lib.state.tree import tensors_in

    layout = plain.lay_out(prepared)
    check_read_back(stored, prepared)
    tensors = tensors_in(prepared)
    return CheckReport(
        format=stored.name,
        size_bytes=layout.size_bytes,
        tensors=len(tensors),
        tensor_bytes=sum(_size_bytes(tensor) for tensor in tensors),
        conversions=tuple(Conversion(*found) for found in conversions(given, prepared)),
    )


def _size_bytes(tensor: Any) -> int:
    """Return the size of the elements that a tensor holds. Sparse ones hold fewer than their shape says."""
    from ckpt_lib.state.sameness import dense_parts

    return sum(int(part.numel()) * int(part.itemsize) for part in dense_parts(tensor))
