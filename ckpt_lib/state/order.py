"""The order in which a ``DataLoader`` hands out samples: a digest of it, and the generators that decide it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

_MOST_LEVELS = 4
"""Samplers are looked for in samplers so many times."""
_MOST_ITEMS = 100
"""Of a list of samplers, no more are looked at."""
_NO_BATCH = xxhash.xxh3_128().hexdigest()


class WatchedIndices:
    """Hands out what a sampler does, skips the first ones if told to, and takes a digest of them."""

    def __init__(self, sampler: Any) -> None:
        self._sampler = sampler
        self._digests: deque[str] = deque([_NO_BATCH])
        self._first = 0
        """The number of batches that the first digest is of."""
        self._to_skip = 0
        self._hash = xxhash.xxh3_128()
        self._iterator: Iterator[Any] = iter(())

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[Any]:
        # A loader with worker processes asks for an iterator twice, and uses the second one.
        self._hash.reset()
        self._digests, self._first = deque([_NO_BATCH]), 0
        self._iterator = iter(self._sampler)
        return self._watch(self._iterator)

    def _watch(self, iterator: Iterator[Any]) -> Iterator[Any]:
        self.skip_now()
        for indices in iterator:
            self._note(indices)
            yield indices

    def skip_next(self, count: int) -> None:
        """Skip the first ``count`` of the next iterator when its first one is wanted."""
        self._to_skip = count

    def skip_now(self) -> None:
        """Skip them at once, before others draw random numbers."""
        count, self._to_skip = self._to_skip, 0
        for indices in islice(self._iterator, count):
            self._note(indices)

    def _note(self, indices: Any) -> None:
        for part in _spelled(indices):
            self._hash.update(part)
        self._digests.append(self._hash.hexdigest())

    def digest_after(self, count: int) -> str:
        """Return the digest of the first ``count``, and forget those of fewer."""
        while self._first < count and len(self._digests) > 1:
            self._digests.popleft()
            self._first += 1
        return self._digests[0]


def _spelled(indices: Any) -> Iterator[bytes]:
    """Yield every value of indices as bytes. ``repr()`` leaves out the middle of large arrays and tensors."""
    import torch

    if isinstance(indices, np.ndarray):
        yield f"{indices.dtype}{indices.shape}".encode()
        yield indices.tobytes()
    elif isinstance(indices, torch.Tensor):
        yield f"{indices.dtype}{tuple(indices.shape)}".encode()
        yield indices.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(indices, list | tuple) and not all(type(index) is int for index in indices):
        yield f"{type(indices).__name__}{len(indices)}".encode()
        for index in indices:
            yield from _spelled(index)
    elif isinstance(indices, dict):
        yield from _spelled(list(indices.items()))
    else:
        yield repr(indices).encode()


def index_sampler_of(loader: DataLoader[Any]) -> Any:
    return loader.sampler if loader.batch_sampler is None else loader.batch_sampler


def sampler_of(loader: DataLoader[Any]) -> Any:
    """Return the sampler of single indices where there is one, which is the one that knows epochs."""
    return getattr(loader.batch_sampler, "sampler", loader.sampler)


def generators_of(loader: DataLoader[Any]) -> list[Any]:
    """Return the generators that the loader and its samplers hold, each once; also those of samplers in samplers."""
    from ckpt_lib.state.generators import is_generator

    samplers = [loader.batch_sampler, sampler_of(loader)]
    found = [loader.generator, *(value for sampler in samplers for value in _held_by(sampler, _MOST_LEVELS))]
    return list({id(generator): generator for generator in found if is_generator(generator)}.values())


def _held_by(item: Any, levels: int) -> Iterator[Any]:
    """Yield what a sampler holds, and what the samplers hold that it wraps, up to a number of levels."""
    values = list(vars(item).values()) if hasattr(item, "__dict__") else ()
    if isinstance(item, list | tuple):
        values = list(item[:_MOST_ITEMS])
    for value in values:
        yield value
        if levels and _may_be_sampler(value):
            yield from _held_by(value, levels - 1)


def _may_be_sampler(item: Any) -> bool:
    """Tell whether an item may decide an order. A dataset does not, and may hold very much."""
    import torch
    from torch.utils.data import DataLoader, Dataset

    if isinstance(item, list | tuple):
        return any(hasattr(inner, "__dict__") for inner in item[:_MOST_ITEMS])
    is_other = isinstance(item, Dataset | DataLoader | torch.Tensor | torch.nn.Module | type)
    return hasattr(item, "__dict__") and callable(getattr(item, "__iter__", None)) and not is_other
