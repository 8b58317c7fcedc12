"""Copies payloads into memory that is kept from save to save, so that training goes on while they are written.

The first copy into fresh memory takes several times as long as the next one into the same memory, because the system
has to find and clear every page. So a :class:`StagingBuffer` is kept.

A copy may also be finished later: tensors in ``deferred`` are copied while the next forward and backward pass run, and
:meth:`Snapshot.finish` copies the rest before the optimizer's step. A tensor that was written to before fails the copy.
"""

from __future__ import annotations

import copy
import ctypes
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ckpt_lib.state import overlap
from ckpt_lib.state.copy_tasks import CopyTask, copy_together
from ckpt_lib.state.memory import address_of, byte_view
from ckpt_lib.state.overlap import AddressKey, DeferredCopies, may_wait
from ckpt_lib.state.ranges import StorageRange, StorageRanges, is_plain
from ckpt_lib.state.tree import map_leaves
from ckpt_lib.state.watching import CallingThread

_ALIGNMENT_BYTES = 64
_PART_BYTES = 16 * 2**20
"""How much one task copies: small enough that two threads share the rest evenly."""


class StagingBuffer:
    """Memory for the copy of one payload at a time. It grows to the largest payload, and is pinned for GPU payloads."""

    def __init__(self) -> None:
        self._bytes = torch.empty(0, dtype=torch.uint8, device="cpu")

    @property
    def size_bytes(self) -> int:
        """The size of the memory that the buffer holds."""
        return len(self._bytes)

    def reserve(self, size_bytes: int, *, pinned: bool) -> None:
        """Allocate and touch at least this much memory. Raises ``MemoryError``."""
        if len(self._bytes) >= size_bytes and self._bytes.is_pinned() >= pinned:
            return
        self._bytes = torch.empty(0, dtype=torch.uint8, device="cpu")  # first free the old memory: both may not fit
        try:
            self._bytes = torch.empty(size_bytes, dtype=torch.uint8, device="cpu", pin_memory=pinned)
        except RuntimeError as error:
            raise MemoryError(
                f"there is no memory for a copy of {size_bytes} bytes; a blocking save needs none"
            ) from error
        # PyTorch would wait for ever in a forked child, which lacks the threads of its parent.
        ctypes.memset(self.address, 0, size_bytes)

    @property
    def address(self) -> int:
        """The address of the memory, valid until the buffer grows."""
        return self._bytes.data_ptr()

    def part(self, start: int, stop: int) -> torch.Tensor:
        """Return a part of the memory as bytes."""
        return self._bytes[start:stop]

    def storage(self, start: int, stop: int) -> torch.UntypedStorage:
        """Return a part of the memory as a separate storage, so that tensors of different ranges share none."""
        part: torch.UntypedStorage = self._bytes.untyped_storage()[start:stop]
        return part


@dataclass(slots=True, eq=False)  # frozen dataclasses take three times as long to create
class _View:
    """Replaces a tensor in the outline: its shape and type, and where its range lies in the buffer."""

    start: int
    size_bytes: int
    offset: int
    stride: tuple[int, ...]
    shape: torch.Size
    dtype: torch.dtype
    requires_grad: bool
    is_parameter: bool


class Snapshot:
    """A payload as it was at one moment, copied into a buffer.

    The constructor copies everything except memory that only tensors in ``deferred`` (keys of
    :func:`~ckpt_lib.state.overlap.address_key`) use. :meth:`finish` copies the rest; until then the snapshot refers to
    those tensors. Tensors that share memory share it in the copy. ``buffer`` must not be used for anything else before
    :meth:`abandon` has returned.
    """

    def __init__(self, payload: dict[str, Any], buffer: StagingBuffer, deferred: Collection[AddressKey] = ()) -> None:
        self._buffer = buffer
        self._caller = CallingThread()
        ranges = StorageRanges(payload)
        starts, size_bytes = _starts(ranges)
        buffer.reserve(size_bytes, pinned=any(stored.storage.device.type == "cuda" for stored in ranges))
        self._streams = _copy_streams(ranges)
        later = [stored for stored in ranges if deferred and may_wait(stored, deferred)]
        self._deferred = DeferredCopies(payload, later)
        self._tasks = [
            CopyTask(partial(self._deferred.copy, stored, copy))
            for stored in later
            for copy in self._copies(stored, starts)
        ]
        self._copy_now([stored for stored in ranges if not self._deferred.holds(stored)], starts)
        self._outline = _outline(payload, ranges, starts)

    @property
    def is_complete(self) -> bool:
        """True when everything is copied, so that the payload's tensors may change."""
        return all(task.is_done for task in self._tasks)

    def finish(self) -> None:
        """Copy the rest, and return when the payload's tensors may change.

        After an error, the next call goes on with the rest. A tensor that was written to too early raises nothing
        here, but in :meth:`payload`.
        """
        self._copy_deferred(reversed(self._tasks))  # from the end, since the background thread copies from the start
        self._deferred.confirm()

    def finish_in_background(self) -> None:
        """Copy the rest from the start, on a thread that cannot tell whether operations are under way."""
        self._copy_deferred(self._tasks)

    def note_contact(self) -> None:
        """Record that the calling thread is not in an operation that writes to a tensor."""
        self._caller.note_contact()

    def abandon(self) -> None:
        """Copy nothing more. When this returns, no thread writes to the buffer."""
        for task in self._tasks:
            task.skip()

    def payload(self) -> dict[str, Any]:
        """Finish the copy and return it. Its tensors are views of the buffer.

        Raises :class:`~ckpt_lib.errors.StateChangedError` when a tensor was written to before it was copied.
        """
        self._copy_deferred(reversed(self._tasks))
        if not self._deferred.is_settled:
            self._caller.wait_until_moved_on()
        self._deferred.confirm()
        if self._deferred.error is not None:
            raise self._deferred.error
        return self._copied()

    def _copied(self) -> dict[str, Any]:
        storages: dict[tuple[int, int], torch.UntypedStorage] = {}
        copies: dict[int, torch.Tensor] = {}

        def copy_of(value: Any) -> Any:
            if not isinstance(value, _View):
                return value
            extent = value.start, value.start + value.size_bytes
            if extent not in storages:
                storages[extent] = self._buffer.storage(*extent)
            if id(value) not in copies:
                copies[id(value)] = _tensor(value, storages[extent])
            return copies[id(value)]

        copied: dict[str, Any] = map_leaves(self._outline, copy_of)
        return copied

    def _copy_deferred(self, tasks: Iterable[CopyTask]) -> None:
        for task in tasks:
            if self._deferred.error is not None:
                self.abandon()  # which waits for other threads
            task.copy()

    def _copy_now(self, ranges: list[StorageRange], starts: dict[int, int]) -> None:
        tasks: list[CopyTask] = []
        for stored in ranges:
            if stored.size_bytes >= overlap.SMALL_BYTES and stored.is_cpu_block:
                tasks.extend(map(CopyTask, self._copies(stored, starts)))
            else:
                self._copy(stored, starts[id(stored)])
        copy_together(tasks)
        for stream in self._streams.values():
            stream.synchronize()

    def _copy(self, stored: StorageRange, start: int) -> None:
        if stored.is_cpu_block:
            _move(self._buffer.address + start, stored.storage, stored.start, stored.stop)
            return
        target = self._buffer.part(start, start + stored.size_bytes)
        if stream := self._streams.get(stored.storage.device):
            with torch.cuda.stream(stream):
                target.copy_(stored.dense(), non_blocking=True)
        else:
            target.copy_(stored.dense())

    def _copies(self, stored: StorageRange, starts: dict[int, int]) -> Iterator[Callable[[], object]]:
        """Yield the actions that copy a range in parts, each on one thread: PyTorch's own threads are training."""
        begin = starts[id(stored)]
        for start in range(0, stored.size_bytes, _PART_BYTES):
            stop = min(start + _PART_BYTES, stored.size_bytes)
            if stored.storage.device.type == "cpu":
                target = self._buffer.address + begin + start
                yield partial(_move, target, stored.storage, stored.start + start, stored.start + stop)
            else:
                part = self._buffer.part(begin + start, begin + stop)
                yield partial(self._copy_and_wait, part, stored.storage, stored.start + start, stored.start + stop)

    def _copy_and_wait(self, target: torch.Tensor, storage: torch.UntypedStorage, start: int, stop: int) -> None:
        source = byte_view(storage, start, stop)  # only now, since the memory may have been freed
        if (stream := self._streams.get(source.device)) is None:
            target.copy_(source)
            return
        with torch.cuda.stream(stream):
            target.copy_(source, non_blocking=True)
        stream.synchronize()


def _move(target: int, storage: torch.UntypedStorage, start: int, stop: int) -> None:
    ctypes.memmove(target, address_of(storage, start, stop), stop - start)


def _outline(payload: dict[str, Any], ranges: StorageRanges, starts: dict[int, int]) -> Any:
    """Return ``payload`` with a :class:`_View` instead of each plain tensor, and a copy of everything else."""
    views: dict[int, Any] = {}  # the payload holds the tensors, so no id is reused

    def view_or_copy(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return copy.deepcopy(value)
        if id(value) not in views:
            views[id(value)] = _view(value, ranges.of(value), starts) if is_plain(value) else _whole_copy(value)
        return views[id(value)]

    return map_leaves(payload, view_or_copy)


def _whole_copy(tensor: torch.Tensor) -> torch.Tensor:
    """Copy a tensor of an unusual kind into memory of its own, with its attributes."""
    # deepcopy fails for some tensors without a storage of their own.
    has_storage = tensor.layout is torch.strided and not tensor.is_nested
    copied = copy.deepcopy(tensor) if tensor.is_leaf and has_storage else tensor.detach().clone()
    copied.__dict__.update(copy.deepcopy(tensor.__dict__))  # deepcopy of a parameter leaves them out
    return copied


def _view(tensor: torch.Tensor, stored: StorageRange, starts: dict[int, int]) -> _View:
    offset, stride = stored.view_of(tensor)
    is_parameter = type(tensor) is torch.nn.Parameter
    return _View(
        starts[id(stored)],
        stored.size_bytes,
        offset,
        stride,
        tensor.shape,
        tensor.dtype,
        tensor.requires_grad,
        is_parameter,
    )


def _tensor(view: _View, storage: torch.UntypedStorage) -> torch.Tensor:
    copied = torch.empty(0, dtype=view.dtype, device="cpu").set_(storage, view.offset, view.shape, view.stride)
    if view.is_parameter:
        return torch.nn.Parameter(copied, view.requires_grad)
    return copied.requires_grad_() if view.requires_grad else copied


def _starts(ranges: StorageRanges) -> tuple[dict[int, int], int]:
    """Return where in the buffer each range begins, by the id of the range, and the size that the buffer needs."""
    starts, end = {}, 0
    for stored in ranges:
        starts[id(stored)] = end
        end += stored.size_bytes + -stored.size_bytes % _ALIGNMENT_BYTES
    return starts, end


def _copy_streams(ranges: StorageRanges) -> dict[torch.device, torch.cuda.Stream]:
    """Return a stream for each GPU, which waits for the work queued so far and runs beside later work."""
    streams = {}
    for device in {stored.storage.device for stored in ranges if stored.storage.device.type == "cuda"}:
        streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        streams[device].wait_stream(torch.cuda.current_stream(device))
    return streams
