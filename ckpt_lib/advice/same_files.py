"""Which checkpoints outside of stores hold the same bytes. Only those of equal sizes are read, and in two steps."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

from ckpt_lib.advice.trees import FoundCheckpoint, Tree
from ckpt_lib.stream import Progress

_SAMPLE_BYTES = 2**16
_BLOCK_BYTES = 2**22
K = TypeVar("K", bound=Hashable)


class SameFiles:
    """Checkpoints of a training are all of one size, so samples of their bytes tell most of them apart."""

    def __init__(self, tree: Tree, progress: Progress | None = None) -> None:
        self._tree = tree
        self._progress = progress

    def contents(self, found: Iterable[FoundCheckpoint]) -> dict[str, str]:
        """Map the paths of checkpoints that others are equal to, byte for byte, to a digest that these share."""
        alike = _groups(found, self._shape)
        alike = [group for one in alike for group in _groups(one, self._sample)]
        digests = {item.path: digest for group in alike for item in group if (digest := self._digest(item))}
        counts: dict[str, int] = {}
        for digest in digests.values():
            counts[digest] = counts.get(digest, 0) + 1
        return {path: digest for path, digest in digests.items() if counts[digest] > 1}

    @staticmethod
    def _shape(item: FoundCheckpoint) -> tuple[tuple[str, int], ...]:
        return tuple((path[len(item.path) :], file.size_bytes) for path, file in sorted(item.files.items()))

    def _sample(self, item: FoundCheckpoint) -> str:
        """Return a digest of the begin, the middle and the end of each file; no two are alike that cannot be read."""
        digest = hashlib.sha256()
        try:
            for path, file in sorted(item.files.items()):
                with open(self._tree.full(path), "rb", buffering=0) as stream:
                    for start in (0, file.size_bytes // 2, max(0, file.size_bytes - _SAMPLE_BYTES)):
                        stream.seek(start)
                        digest.update(stream.read(_SAMPLE_BYTES) or b"")
        except OSError:
            return item.path
        return digest.hexdigest()

    def _digest(self, item: FoundCheckpoint) -> str | None:
        """Return the SHA-256 of all files, in order; ``None`` for what cannot be read, or has another size by now."""
        digest = hashlib.sha256()
        try:
            for path, file in sorted(item.files.items()):
                digest.update(f"{path[len(item.path) :]}\0{file.size_bytes}\0".encode())
                if self._update(digest.update, path) != file.size_bytes:
                    return None
        except OSError:
            return None
        return digest.hexdigest()

    def _update(self, update: Callable[[bytes], None], path: str) -> int:
        total = 0
        with open(self._tree.full(path), "rb", buffering=0) as stream:
            while block := stream.read(_BLOCK_BYTES):
                update(block)
                total += len(block)
                if self._progress:
                    self._progress(len(block))
        return total


def _groups(found: Iterable[FoundCheckpoint], key: Callable[[FoundCheckpoint], K]) -> list[list[FoundCheckpoint]]:
    """Return those that share a key with another one."""
    groups: dict[K, list[FoundCheckpoint]] = {}
    for item in found:
        groups.setdefault(key(item), []).append(item)
    return [group for group in groups.values() if len(group) > 1]
