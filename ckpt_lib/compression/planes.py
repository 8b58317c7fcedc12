"""Byte planes: the first bytes of all words, then all second bytes, and so on.

The exponents of neighbouring numbers are alike, and their last bits are noise. Kept apart, the exponents compress well
and the noise is left as it is. To rotate the sign out of the way first, as others do, makes weights smaller by another
0.1 percent (float32) or 0.8 percent (bfloat16), and costs a third more time on both ways.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ckpt_lib.stream.digests import Buffer

Bytes = NDArray[np.uint8]

WIDTHS = (2, 4, 8)
"""The bytes of a word: of half-precision numbers, of single and of double ones."""
_SAMPLE_BYTES = 2**14
_SLICES = 8
_PLACES = np.arange(_SAMPLE_BYTES, dtype=np.int64) % 8 * 256
"""Keeps counts of bytes at different positions of eight apart."""
_CLEARLY = 0.995
"""Wider words have to be so much smaller to be preferred."""


class Outlook(NamedTuple):
    """What a sample tells of a split into planes: the bytes that all of it would take, and each plane, of one byte."""

    width: int
    size_bytes: float
    planes: Sequence[float]


def split(data: Buffer, width: int) -> list[Bytes]:
    """Return the planes of the whole words in ``data``."""
    parts = np.frombuffer(data, np.uint8, len(data) // width * width)
    return [parts[number::width].copy() for number in range(width)]


def join(planes: Sequence[Buffer], target: memoryview) -> None:
    """Write the words whose planes these are to ``target``."""
    parts = np.frombuffer(target, np.uint8)
    for number, plane in enumerate(planes):
        parts[number :: len(planes)] = np.frombuffer(plane, np.uint8)


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
    places = np.frombuffer(sample, np.uint8) + _PLACES[: len(sample)]
    counted = np.bincount(places, minlength=8 * 256).reshape(8, 256)
    by_width = [counted.reshape(8 // width, width, 256).sum(axis=0) for width in WIDTHS]
    coded, totals = _coded_bytes(np.concatenate(by_width))
    best, start = Outlook(0, math.inf, ()), 0
    for width in WIDTHS:
        rows = slice(start, start := start + width)
        if (size_bytes := float(coded[rows].sum())) < best.size_bytes * _CLEARLY:
            best = Outlook(width, size_bytes, (coded[rows] / totals[rows]).tolist())
    return best


def _coded_bytes(counts: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the bytes that ideal codes take for each row, and those that it has.

    A sample is more regular than the whole by about half a bit for each value that occurs (Miller and Madow, 1955).
    """
    totals = counts.sum(axis=1)
    bits = totals * np.log2(totals) - (counts * np.log2(np.maximum(counts, 1))).sum(axis=1)
    bits += ((counts > 0).sum(axis=1) - 1) / (2 * math.log(2))
    return np.minimum(bits / 8, totals), totals
