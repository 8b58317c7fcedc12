"""What the machine can do at best, measured beside everything else, and control over its page cache."""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness import timed

_BLOCK_BYTES = 32 * 2**20


def filled_memory(size_bytes: int) -> mmap.mmap:
    """Memory that begins at a page and holds random bytes: as direct I/O needs it, and as a hash cannot shorten it."""
    memory = mmap.mmap(-1, max(size_bytes, mmap.PAGESIZE))
    np.frombuffer(memory, dtype=np.uint8)[:] = np.random.default_rng(0).integers(0, 256, len(memory), dtype=np.uint8)
    return memory


def write_directly(memory: mmap.mmap, path: Path) -> None:
    """Write whole pages of ``memory`` to a new file around the page cache, in large blocks, and make them durable."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_DIRECT", 0), 0o644)
    try:
        with memoryview(memory) as view:
            whole = len(view) - len(view) % mmap.PAGESIZE
            position = 0
            while position < whole:
                position += os.write(descriptor, view[position : min(position + _BLOCK_BYTES, whole)])
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hash_all(memory: mmap.mmap) -> None:
    """SHA-256 on one core, as fast as the library does it."""
    with memoryview(memory) as view:
        hashlib.sha256(view).digest()


def copier(tensors: Sequence[torch.Tensor]) -> Callable[[], None]:
    """A function that copies all tensors into memory that has been used before."""
    pairs = [(torch.empty_like(tensor).copy_(tensor.detach()), tensor.detach()) for tensor in tensors]

    def copy() -> None:
        for target, source in pairs:
            target.copy_(source)

    return copy


def warm_seconds(work: Callable[[], None]) -> float:
    """Seconds of the second of two calls: memory that nobody has touched for a while is slower than the limit."""
    work()
    return timed(work)


def drop_cached(paths: Iterable[Path]) -> None:
    """Take files out of the page cache; raises ``RuntimeError`` when some of them stays, as mapped pages do."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if cached := cached_bytes(path):
            raise RuntimeError(f"{cached} bytes of {path.name} are still in memory: a cold read cannot be measured")


def cached_bytes(path: Path) -> int:
    """How much of a file is in the page cache."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping:
        pages = -(-len(mapping) // mmap.PAGESIZE)
        resident = (ctypes.c_ubyte * pages)()
        address = np.frombuffer(mapping, dtype=np.uint8).ctypes.data
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(len(mapping)), resident) != 0:
            raise OSError(ctypes.get_errno(), "mincore failed", str(path))
        return sum(flags & 1 for flags in resident) * mmap.PAGESIZE
