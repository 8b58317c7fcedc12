"""Limits on what the pickle of a payload may cost its reader, which a save checks before it writes.

It may take only so many bytes and unpickling steps, and repeat itself only so often.
"""

from __future__ import annotations

from typing import Any

from ckpt_lib.errors import UnsafePayloadError
from ckpt_lib.formats.limits import containers_in

_STRUCTURE_BYTES, _BYTES_A_RECORD = 64 * 2**20, 400
_STEPS_ALLOWED, _STEPS_A_RECORD = 4_000_000, 200
# How much longer a structure may become when every shared part is written out in full.
_MAX_SHARED_FACTOR, _MAX_UNSHARED = 16, 1_000_000


def unsafe(reason: str) -> UnsafePayloadError:
    """Return the error for a payload that would cost too much, or run code, when it is read."""
    return needs_trust(f"the payload was not read: {reason}")


def needs_trust(message: str) -> UnsafePayloadError:
    """Return the error for a payload that is read only on request."""
    return UnsafePayloadError(
        message,
        hint="If you trust whoever wrote it, load it with trust_pickle=True, which may run code stored in it.",
    )


def max_structure_bytes(records: int) -> int:
    """Return how many bytes the pickle of a payload with this many records may take."""
    return _STRUCTURE_BYTES + _BYTES_A_RECORD * records


def max_steps(records: int) -> int:
    """Return how many opcodes the pickle of a payload with this many records may execute.

    Each opcode builds up to 80 bytes; a list of thousands of numbers counts as one. A tensor takes about forty and
    usually has a record of its own, so the limit grows with the number of tensors.
    """
    return _STEPS_ALLOWED + _STEPS_A_RECORD * records


def check_sharing(loaded: Any) -> None:
    """Refuse a structure that contains itself, or that shares parts so often that walking through it takes too long.

    Raises :class:`~ckpt_lib.errors.UnsafePayloadError`.
    """
    sizes: dict[int, int] = {}  # of each container when every shared part is counted again; -1 while it is open
    waiting: list[tuple[Any, bool]] = [(loaded, False)]
    while waiting:
        item, is_done = waiting.pop()
        parts = containers_in(item)
        if is_done:
            sizes[id(item)] = 1 + sum(sizes[id(part)] for part in parts)
        elif id(item) not in sizes:
            sizes[id(item)] = -1
            waiting.append((item, True))
            waiting += [(part, False) for part in parts if id(part) not in sizes]
            if any(sizes.get(id(part)) == -1 for part in parts):
                raise unsafe("a container in it contains itself")
    if sizes[id(loaded)] > _MAX_UNSHARED + _MAX_SHARED_FACTOR * len(sizes):
        raise unsafe("its structure repeats itself without end")
