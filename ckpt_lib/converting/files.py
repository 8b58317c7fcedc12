"""Files that a conversion makes: written as streams, compared with what is there, and named when all are whole."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from ckpt_lib.errors import CheckpointExistsError
from ckpt_lib.formats.safetensors.naming import INDEX_SUFFIX, SUFFIX
from ckpt_lib.store import Store, Upload, location
from ckpt_lib.stream import BLOCK_SIZE_BYTES, FileDigests, HashingWriter, Progress, StreamDigest
from ckpt_lib.stream.digests import Buffer
from ckpt_lib.stream.writer import Sink


@dataclass(frozen=True)
class NewFile:
    """A file that is to be written."""

    name: str
    size_bytes: int
    write: Callable[[HashingWriter], object]
    """Writes all of it, the same bytes each time."""


def text_file(name: str, text: bytes) -> NewFile:
    """Return a small file."""
    return NewFile(name, len(text), lambda stream: stream.write(text))


def publish(store: Store, files: Sequence[NewFile], progress: Progress | None = None) -> None:
    """Write files durably. None gets its name before all are whole; then they get them in this order.

    A file that is there and the same is left as it is. Raises :class:`~ckpt_lib.errors.CheckpointExistsError` for
    another one that has a name of ours, before anything is written if its size tells, and for weights beside them that
    readers would take instead. Killed on the way, call it again.
    """
    for file in files:
        found = store.stat(file.name)
        if _is_link(store, file.name) or (found is not None and found.size_bytes != file.size_bytes):
            raise _taken(store, file.name)
    for name in _rivals(files):
        if store.stat(name) is not None or _is_link(store, name):
            raise _taken(store, name, "readers would take the weights that are there, and not the index of these")
    with ExitStack() as stack:
        uploads: list[tuple[NewFile, Upload]] = []
        for file in files:
            if store.stat(file.name) is not None:
                _require_same(store, file, progress)
                continue
            upload = store.open_write(file.name)
            stack.callback(upload.abort)
            _write(file, upload, progress)
            uploads.append((file, upload))
        for file, upload in uploads:
            if store.stat(file.name) is not None or _is_link(store, file.name):  # it was put there meanwhile
                raise _taken(store, file.name)
            upload.commit()


def _require_same(store: Store, file: NewFile, progress: Progress | None) -> None:
    digest = StreamDigest()
    with store.open_read(file.name) as reader:
        for start in range(0, reader.size_bytes, BLOCK_SIZE_BYTES):
            digest.update(reader.read_at(start, start + BLOCK_SIZE_BYTES))
    if _write(file, _Nowhere(), progress).sha256 != digest.finish().sha256:
        raise _taken(store, file.name)


def _is_link(store: Store, name: str) -> bool:
    """Tell whether a link of this machine has the name, which writing would replace."""
    return os.path.islink(location(store, name))


def _rivals(files: Sequence[NewFile]) -> Iterator[str]:
    """Yield the names of single files of weights that readers look for before they look for an index of several."""
    for file in files:
        if file.name.endswith(INDEX_SUFFIX):
            yield file.name.removesuffix(INDEX_SUFFIX) + SUFFIX


def _write(file: NewFile, sink: Sink, progress: Progress | None) -> FileDigests:
    with HashingWriter(_Counted(sink, progress) if progress else sink) as stream:
        file.write(stream)
        return stream.finish()


class _Nowhere:
    def write(self, data: Buffer, /) -> int:
        return len(data)


class _Counted:
    def __init__(self, sink: Sink, progress: Progress) -> None:
        self._sink = sink
        self._progress = progress

    def write(self, data: Buffer, /) -> int:
        written = self._sink.write(data)
        self._progress(len(data))
        return written


def _taken(store: Store, name: str, reason: str = "another file has that name there") -> CheckpointExistsError:
    return CheckpointExistsError(
        reason,
        path=location(store, name),
        hint="It was left as it is: move it away, or choose another destination.",
    )
