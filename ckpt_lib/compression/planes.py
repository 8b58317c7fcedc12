"""Byte planes: the first bytes of all words, then all second bytes, and so on.

The exponents of neighbouring numbers are alike, and their signs and last bits are noise. Kept apart, the exponents
compress well and the noise is left as it is. In a number of 32 bits, and in a bfloat16, the exponent lies between two
bytes, beside the sign. There it gets a plane of its own, and the sign takes its place in the byte below.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ckpt_lib.stream.digests import Buffer

Bytes = NDArray[np.uint8]


class Split(NamedTuple):
    """How words of so many bytes are taken apart.

    Each byte is a plane, from the lowest on: of words as they are, or rotated left by one bit. The kind ``exponents``
    is for numbers of 32 bits and bfloat16: all low halves of the former in one plane, then a plane of signs with the
    highest seven bits of the fractions, then one of exponents.
    """

    width: int
    kind: Literal["bytes", "rotated", "exponents"]

    @property
    def widths(self) -> tuple[int, ...]:
        """How many bytes of a word each plane has."""
        return (2, 1, 1) if self == (4, "exponents") else (1,) * self.width


SPLITS = (
    Split(2, "bytes"),
    Split(2, "rotated"),
    Split(4, "bytes"),
    Split(4, "rotated"),
    Split(8, "bytes"),
    Split(2, "exponents"),
    Split(4, "exponents"),
)
_WRITTEN = (Split(2, "bytes"), Split(2, "exponents"), Split(4, "exponents"), Split(4, "bytes"), Split(8, "bytes"))
"""The quicker to join come first. Rotated words take twice the time of ``exponents``, and no fewer bytes."""
_SAMPLE_BYTES = 2**14
_SLICES = 8
_PLACES = np.arange(_SAMPLE_BYTES, dtype=np.int64) % 8 * 256
"""Keeps counts of bytes at different positions of eight apart."""
_CLEARLY = 0.995
"""What takes more time on the way back has to be so much smaller to be preferred."""
_SIGN_AND_FRACTION, _FRACTION_BITS = 0x807F, 7
"""Of the upper 16 bits of a number of 32, which are those of a bfloat16."""


class Room:
    """Memory of this thread for what is needed only while a frame is worked on.

    Memory that is allocated and freed for each frame goes back to the system and comes again page by page, which takes
    longer than the work on it.
    """

    _kept = threading.local()

    def __init__(self) -> None:
        self._taken = 0

    def take(self, size_bytes: int) -> Bytes:
        """Return so many bytes, of any content, that no other call returns before this thread asks for a new room."""
        pieces: list[Bytes] = self._kept.__dict__.setdefault("pieces", [])
        self._taken += 1
        if len(pieces) < self._taken:
            pieces.append(np.empty(size_bytes, np.uint8))
        elif len(pieces[self._taken - 1]) < size_bytes:
            pieces[self._taken - 1] = np.empty(size_bytes, np.uint8)
        return pieces[self._taken - 1][:size_bytes]


class Outlook(NamedTuple):
    """What a sample tells of a split: the bytes that all of it would take, and each byte of each plane."""

    how: Split
    size_bytes: float
    planes: Sequence[float]


def split(data: Buffer, how: Split) -> list[Bytes]:
    """Return the planes of the whole words in ``data``."""
    if how.kind == "exponents":
        low, high = ((), _words(data, 2)) if how.width == 2 else _low_and_high(_words(data, 4))
        rest = (high & _SIGN_AND_FRACTION) | ((high & 0x8000) >> 8)
        return [*low, rest.astype(np.uint8), (high >> _FRACTION_BITS).astype(np.uint8)]
    parts: list[NDArray[Any]] = [_rotated(data, how)]
    while parts[0].itemsize > 1:
        parts = [half for words in parts for half in _halves(words)]
    return parts


def _low_and_high(words: NDArray[Any]) -> tuple[tuple[Bytes], NDArray[Any]]:
    low, high = _halves(words)
    return (low.view(np.uint8),), high


def _halves(words: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the lower and the upper halves of words. Arithmetic takes half the time of copying every other byte."""
    half = np.dtype(f"u{words.itemsize // 2}")
    return words.astype(half), (words >> (4 * words.itemsize)).astype(half)


def join(planes: Sequence[Buffer], how: Split, target: memoryview, room: Room) -> None:
    """Write the words whose planes these are to ``target``, which has room for no more."""
    wanted = _words(target, how.width)
    parts: list[NDArray[Any]] = [np.frombuffer(plane, np.uint8) for plane in planes]
    if how.kind == "exponents":
        _join_exponents(parts, wanted, room)
        return
    while len(parts) > 2:
        parts = [_joined(low, high, room) for low, high in zip(parts[::2], parts[1::2], strict=True)]
    low, high = parts
    if how.kind == "bytes":
        _joined(low, high, wanted)
        return
    words = _joined(low, high, room)
    np.multiply(words, 1 << (8 * how.width - 1), out=wanted)  # a shift to the left, which NumPy does more slowly
    np.right_shift(words, 1, out=words)
    np.bitwise_or(wanted, words, out=wanted)


def _join_exponents(parts: Sequence[NDArray[Any]], wanted: NDArray[Any], room: Room) -> None:
    """Write numbers to ``wanted``. Each step is one that NumPy does with vectors, and most are on half the bytes."""
    *low, rest, exponents = parts
    high = room.take(2 * len(rest)).view("<u2") if low else wanted
    shifted = room.take(2 * len(rest)).view("<u2")
    np.copyto(high.view(np.int16), rest.view(np.int8))  # which puts the sign into the highest bit
    np.bitwise_and(high, _SIGN_AND_FRACTION, out=high)
    np.multiply(exponents, 1 << _FRACTION_BITS, out=shifted, dtype=np.uint16)
    np.bitwise_or(high, shifted, out=high)
    if low:
        lowest = room.take(4 * len(rest)).view("<u4")
        np.copyto(lowest, low[0].view("<u2"))
        np.copyto(wanted, high)
        np.multiply(wanted, 1 << 16, out=wanted)
        np.bitwise_or(wanted, lowest, out=wanted)


def _joined(low: NDArray[Any], high: NDArray[Any], target: NDArray[Any] | Room) -> NDArray[Any]:
    """Return the words that have these halves, in ``target``; the opposite of :func:`_halves`."""
    words = target.take(2 * low.nbytes).view(f"u{2 * low.itemsize}") if isinstance(target, Room) else target
    np.multiply(high, 1 << (8 * low.itemsize), out=words, dtype=f"u{2 * low.itemsize}")
    np.bitwise_or(words, low, out=words)
    return words


def _words(data: Buffer, width: int) -> NDArray[Any]:
    return np.frombuffer(data, f"<u{width}", len(data) // width)


def _rotated(data: Buffer, how: Split) -> NDArray[Any]:
    words = _words(data, how.width)
    if how.kind == "bytes":
        return words
    rotated = words << 1
    np.bitwise_or(rotated, words >> (8 * how.width - 1), out=rotated)
    return rotated.astype(words.dtype, copy=False)


def sample_of(data: Buffer) -> bytes:
    """Return slices from all over ``data``, of whole words and of a few kilobytes together."""
    view = memoryview(data)
    if len(view) <= _SAMPLE_BYTES:
        return bytes(view[: len(view) // 8 * 8])
    size = _SAMPLE_BYTES // _SLICES
    starts = (number * (len(view) - size) // (_SLICES - 1) // 8 * 8 for number in range(_SLICES))
    return b"".join(view[start : start + size] for start in starts)


def best_split(sample: Buffer) -> Outlook:
    """Return the split whose planes take the fewest bytes if each is coded by the frequency of its bytes.

    ``sample`` is of at least one byte, and as :func:`sample_of` returns it.
    """
    as_it_is = _counts(np.frombuffer(sample, np.uint8))
    counted = []
    for how in _WRITTEN:
        if how.kind == "bytes":
            counted.append(as_it_is.reshape(8 // how.width, how.width, 256).sum(axis=0))
        else:
            counted.append(np.stack([np.bincount(plane, minlength=256) for plane in split(sample, how)]))
    coded, totals = _coded_bytes(np.concatenate(counted))
    best, start = Outlook(_WRITTEN[0], math.inf, ()), 0
    for how in _WRITTEN:
        rows = slice(start, start := start + len(how.widths))
        if (size_bytes := float(coded[rows].sum())) < best.size_bytes * _CLEARLY:
            best = Outlook(how, size_bytes, (coded[rows] / totals[rows]).tolist())
    return best


def _counts(sample: Bytes) -> NDArray[np.int64]:
    """Count how often each byte is at each of eight places."""
    return np.bincount(sample + _PLACES[: len(sample)], minlength=8 * 256).reshape(8, 256)


def _coded_bytes(counts: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the bytes that ideal codes take for each row, and those that it has.

    A sample is more regular than the whole by about half a bit for each value that occurs (Miller and Madow, 1955).
    """
    totals = counts.sum(axis=1)
    bits = totals * np.log2(totals) - (counts * np.log2(np.maximum(counts, 1))).sum(axis=1)
    bits += ((counts > 0).sum(axis=1) - 1) / (2 * math.log(2))
    return np.minimum(bits / 8, totals), totals
