"""Byte planes: the first bytes of all words, then all second bytes, and so on.

The exponents of neighbouring numbers are alike and their last bits are noise. Kept apart, the exponents compress well,
and the noise need not be looked at. In a number of 32 or of 16 bits (of bfloat16, not of float16), the exponent begins
one bit after the sign; rotated left by that bit, it is a byte of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ckpt_lib.stream.digests import Buffer

Bytes = NDArray[np.uint8]

_SAMPLE_BYTES = 2**15
_SLICES = 8
_CLEARLY = 0.99
"""A wider split has to be so much smaller to be preferred."""


class Split(NamedTuple):
    """How a frame is split into planes: by words of so many bytes, which may be rotated left by one bit before."""

    width: int
    is_rotated: bool


SPLITS = (Split(2, False), Split(2, True), Split(4, False), Split(4, True), Split(8, False))


def split(data: Buffer, how: Split) -> list[Bytes]:
    """Return the planes of the whole words in ``data``."""
    words = _words(data, how)
    if how.is_rotated:
        words = ((words << 1) | (words >> (8 * how.width - 1))).astype(words.dtype, copy=False)
    parts = words.view(np.uint8)
    return [parts[number :: how.width].copy() for number in range(how.width)]


def join(planes: Sequence[Buffer], how: Split, target: memoryview) -> None:
    """Write the words whose planes these are to ``target``."""
    wanted = _words(target, how)
    words = np.empty_like(wanted) if how.is_rotated else wanted
    parts = words.view(np.uint8)
    for number, plane in enumerate(planes):
        parts[number :: how.width] = np.frombuffer(plane, np.uint8)
    if how.is_rotated:
        np.right_shift(words, 1, out=wanted)
        np.left_shift(words, 8 * how.width - 1, out=words)
        np.bitwise_or(wanted, words, out=wanted)


def _words(data: Buffer, how: Split) -> NDArray[Any]:
    return np.frombuffer(data, f"<u{how.width}", len(data) // how.width)


def sample_of(data: Buffer) -> bytes:
    """Return slices from all over ``data``, of whole words and of a few kilobytes together."""
    view = memoryview(data)
    if len(view) <= _SAMPLE_BYTES:
        return bytes(view[: len(view) // 8 * 8])
    size = _SAMPLE_BYTES // _SLICES
    starts = (number * (len(view) - size) // (_SLICES - 1) // 8 * 8 for number in range(_SLICES))
    return b"".join(view[start : start + size] for start in starts)


def best_split(sample: Buffer) -> tuple[Split, float]:
    """Return the split whose planes take the fewest bytes if each is coded by the frequency of its bytes, and these."""
    best, fewest = SPLITS[0], math.inf
    for how, size_bytes in zip(SPLITS, _estimates(sample), strict=True):
        if size_bytes < fewest * _CLEARLY:
            best, fewest = how, size_bytes
    return best, fewest


def _estimates(sample: Buffer) -> list[float]:
    by_position = _counts(np.frombuffer(sample, np.uint8), 8)
    rotated = {}
    for how in SPLITS:
        if how.is_rotated:
            words = _words(sample, how)
            words = ((words << 1) | (words >> (8 * how.width - 1))).astype(words.dtype, copy=False)
            rotated[how.width] = _counts(words.view(np.uint8), how.width)
    plain = {width: by_position.reshape(8 // width, width, 256).sum(axis=0) for width in (2, 4, 8)}
    return [_coded_bytes((rotated if how.is_rotated else plain)[how.width]) for how in SPLITS]


def _counts(data: Bytes, width: int) -> NDArray[np.int64]:
    """Count, for each position in a word, how often each byte is there."""
    positions = np.arange(len(data), dtype=np.int64) % width
    return np.bincount(positions * 256 + data, minlength=width * 256).reshape(width, 256)


def _coded_bytes(counts: NDArray[np.int64]) -> float:
    """Return the bytes that ideal codes by frequency take, corrected for a sample being more regular than the whole."""
    totals = counts.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        bits = -np.where(counts > 0, counts * np.log2(counts / totals[:, None]), 0.0).sum(axis=1)
    bits += ((counts > 0).sum(axis=1) - 1) / (2 * math.log(2))
    return float(np.minimum(bits, 8 * totals).sum() / 8)
