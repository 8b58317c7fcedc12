"""Copies of payloads in memory that is used again for every save, so that training can go on while they are written.

A first copy into fresh memory costs several times as much as the next one into the same memory: the system has to find
and clear every page. So a :class:`StagingBuffer` is kept from save to save.

A copy need not be finished at once either. Parameters and optimizer state do not change before the optimizer's next
step, so their tensors may be copied while the next forward and backward pass run; whoever is about to change them
first calls :meth:`Snapshot.finish`, which copies what is left.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ckpt_lib.stream.chunks import processor_count
from ckpt_lib.stream.spans import Span, Spans, byte_view, is_plain, map_leaves, tensors_in

_ALIGNMENT_BYTES = 64
_PIECE_BYTES = 16 * 2**20
"""How much is copied at a time in the background: small enough for two threads to share what is left evenly."""
_MAX_THREADS = 8
"""More do not copy faster: memory is the limit."""
_SMALL_BYTES = 2**16
"""What is smaller is copied at once: that takes no longer than remembering to do it."""


class StagingBuffer:
    """Memory for the copy of one payload at a time. It grows to the largest, and is pinned once that is on a GPU."""

    def __init__(self) -> None:
        self._bytes = torch.empty(0, dtype=torch.uint8)

    @property
    def size_bytes(self) -> int:
        """How much memory it holds."""
        return len(self._bytes)

    def reserve(self, size_bytes: int, *, pinned: bool) -> None:
        """Have at least this much memory, and have touched it. Raises ``MemoryError``."""
        if len(self._bytes) >= size_bytes and self._bytes.is_pinned() >= pinned:
            return
        self._bytes = torch.empty(0, dtype=torch.uint8)  # let go of the old first: both may not fit
        try:
            self._bytes = torch.empty(size_bytes, dtype=torch.uint8, pin_memory=pinned).fill_(0)
        except RuntimeError as error:
            raise MemoryError(
                f"there is no memory for a copy of {size_bytes} bytes; a blocking save needs none"
            ) from error

    @property
    def address(self) -> int:
        """Where it lies, until it grows."""
        return self._bytes.data_ptr()

    def part(self, start: int, stop: int) -> torch.Tensor:
        """A part of it, as bytes."""
        return self._bytes[start:stop]

    def storage(self, start: int, stop: int) -> torch.UntypedStorage:
        """A part of it, as a storage of its own; nothing else keeps tensors of different spans apart."""
        part: torch.UntypedStorage = self._bytes.untyped_storage()[start:stop]
        return part


@dataclass(frozen=True)
class _View:
    """What a tensor says of itself, and the span it is in; stands for it until the copy is handed out."""

    span: Span
    offset: int
    stride: tuple[int, ...]
    shape: torch.Size
    dtype: torch.dtype
    requires_grad: bool
    is_parameter: bool


class Snapshot:
    """A payload as it was at one moment, copied into a buffer.

    When the constructor returns, everything is copied but the memory that only tensors in ``deferred`` (by
    :func:`place`) use, which :meth:`finish` copies, or has copied. Tensors that share memory share it in the copy.
    ``buffer`` must not be used for anything else before :meth:`abandon` has returned.
    """

    def __init__(self, payload: dict[str, Any], buffer: StagingBuffer, deferred: Collection[Place] = ()) -> None:
        self._buffer = buffer
        self._spans = Spans(payload)
        self._starts, size_bytes = _starts(self._spans)
        buffer.reserve(size_bytes, pinned=any(span.storage.device.type == "cuda" for span in self._spans))
        self._pieces: list[_Piece] = []
        now: list[_Piece] = []
        self._streams = _copy_streams(self._spans)
        for span in self._spans:
            if deferred and _may_wait(span, deferred):
                self._pieces.extend(self._pieces_of(span))
            elif span.storage.device.type == "cpu" and span.size_bytes >= _SMALL_BYTES and not span.is_gappy:
                now.extend(self._pieces_of(span))
            else:
                self._copy(span)
        _copy_together(now)
        self._synchronize()
        self._views: dict[int, Any] = {}
        self._outline = map_leaves(payload, self._outline_of)

    @property
    def is_complete(self) -> bool:
        """Whether the payload's own tensors may change now."""
        return all(piece.is_done for piece in self._pieces)

    def finish(self) -> None:
        """Copy what is left, and return when all of it is copied. What is raised leaves the rest to the next call."""
        for piece in reversed(self._pieces):  # from the end: another thread may be coming from the start
            piece.copy()

    def finish_in_background(self) -> None:
        """:meth:`finish`, from the start."""
        for piece in self._pieces:
            piece.copy()

    def abandon(self) -> None:
        """Copy nothing more; when this returns, nothing writes to the buffer."""
        for piece in self._pieces:
            piece.skip()

    def payload(self) -> dict[str, Any]:
        """The copy, once all of it is there; its tensors are views of the buffer."""
        self.finish()
        storages = {}
        for span in self._spans:
            start = self._starts[id(span)]
            storages[id(span)] = self._buffer.storage(start, start + span.size_bytes)
        copies: dict[int, torch.Tensor] = {}

        def copy_of(value: Any) -> Any:
            if not isinstance(value, _View):
                return value
            if id(value) not in copies:
                copies[id(value)] = _tensor(value, storages[id(value.span)])
            return copies[id(value)]

        copied: dict[str, Any] = map_leaves(self._outline, copy_of)
        return copied

    def _outline_of(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return copy.deepcopy(value)
        if id(value) not in self._views:  # the spans and the outline hold the originals, so that ids stay their own
            if is_plain(value):
                self._views[id(value)] = _view(value, self._spans.of(value))
            else:
                self._views[id(value)] = _whole_copy(value)
        return self._views[id(value)]

    def _copy(self, span: Span) -> None:
        start = self._starts[id(span)]
        if span.storage.device.type == "cpu" and not span.is_gappy:
            ctypes.memmove(self._buffer.address + start, span.storage.data_ptr() + span.start, span.size_bytes)
            return
        target = self._buffer.part(start, start + span.size_bytes)
        if stream := self._streams.get(span.storage.device):
            with torch.cuda.stream(stream):
                target.copy_(span.dense(), non_blocking=True)
        else:
            target.copy_(span.dense())

    def _pieces_of(self, span: Span) -> Iterator[_Piece]:
        """Copies of a span's parts, each of which one thread makes: those that PyTorch would take are computing."""
        place = self._starts[id(span)]
        for start in range(0, span.size_bytes, _PIECE_BYTES):
            stop = min(start + _PIECE_BYTES, span.size_bytes)
            if span.storage.device.type == "cpu":
                target = self._buffer.address + place + start
                yield _Piece(partial(_move, target, span.storage, span.start + start, span.start + stop))
            else:
                part = self._buffer.part(place + start, place + stop)
                piece = byte_view(span.storage, span.start + start, span.start + stop)
                yield _Piece(partial(self._copy_and_wait, part, piece))

    def _copy_and_wait(self, target: torch.Tensor, source: torch.Tensor) -> None:
        if (stream := self._streams.get(source.device)) is None:
            target.copy_(source)
            return
        with torch.cuda.stream(stream):
            target.copy_(source, non_blocking=True)
        stream.synchronize()

    def _synchronize(self) -> None:
        for stream in self._streams.values():
            stream.synchronize()


class _Piece:
    """A part that is copied once, by whoever comes first; an error leaves it to be copied by the next."""

    def __init__(self, action: Callable[[], object]) -> None:
        self._action = action
        self._lock = threading.Lock()
        self.is_done = False

    def copy(self) -> None:
        if self.is_done:
            return
        with self._lock:
            if not self.is_done:
                self._action()
                self.is_done = True

    def skip(self) -> None:
        with self._lock:
            self.is_done = True


def _copy_together(pieces: list[_Piece]) -> None:
    """Copy all of them, on as many threads as pay; PyTorch does it as fast, but takes longer to begin with each."""
    waiting = deque(pieces)

    def work() -> None:
        with contextlib.suppress(IndexError):  # nothing is left
            while True:
                waiting.popleft().copy()

    helpers = [
        threading.Thread(target=work, daemon=True) for _ in range(min(_MAX_THREADS, processor_count(), len(pieces)) - 1)
    ]
    try:
        for helper in helpers:
            helper.start()
        work()
    finally:
        waiting.clear()
        for helper in helpers:
            if helper.ident is not None:
                helper.join()
    for piece in pieces:  # one that failed on another thread fails here again
        piece.copy()


def _move(target: int, storage: torch.UntypedStorage, start: int, stop: int) -> None:
    # Where the storage lies is asked now: it may have been moved, into shared memory for example.
    if storage.nbytes() < stop:
        raise RuntimeError("a tensor that is being saved was resized before it was copied")
    ctypes.memmove(target, storage.data_ptr() + start, stop - start)


def _whole_copy(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of a tensor of an unusual kind, with what hangs on it, in memory of its own."""
    # Of tensors that have no storage of their own, torch copies some kinds in this way alone.
    has_storage = tensor.layout is torch.strided and not tensor.is_nested
    copied = copy.deepcopy(tensor) if tensor.is_leaf and has_storage else tensor.detach().clone()
    copied.__dict__.update(copy.deepcopy(tensor.__dict__))  # which parameters do not copy
    return copied


def _may_wait(span: Span, deferred: Collection[Place]) -> bool:
    """Whether nothing but the tensors in ``deferred`` uses a span, and copying it now would take a while."""
    if span.size_bytes < _SMALL_BYTES or span.is_gappy:
        return False
    return all(place(tensor) in deferred for tensor in span.tensors)


def _view(tensor: torch.Tensor, span: Span) -> _View:
    offset, stride = span.place_of(tensor)
    is_parameter = type(tensor) is torch.nn.Parameter
    return _View(span, offset, stride, tensor.shape, tensor.dtype, tensor.requires_grad, is_parameter)


def _tensor(view: _View, storage: torch.UntypedStorage) -> torch.Tensor:
    copied = torch.empty(0, dtype=view.dtype).set_(storage, view.offset, view.shape, view.stride)
    if view.is_parameter:
        return torch.nn.Parameter(copied, view.requires_grad)
    return copied.requires_grad_() if view.requires_grad else copied


Place = tuple[int, torch.Size, tuple[int, ...]]


def place(tensor: torch.Tensor) -> Place:
    """What two tensors have in common that are the same view of the same memory."""
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def unchanged_until_step(optimizer: Any) -> set[Place]:
    """The places of all tensors that only a next step will change: the optimizer's parameters, and its state.

    Empty when this is no optimizer of PyTorch, or one whose steps do not call hooks.
    """
    if not isinstance(optimizer, torch.optim.Optimizer) or not getattr(type(optimizer).step, "hooked", False):
        return set()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    tensors = (*parameters, *tensors_in(optimizer.state))
    return {place(tensor) for tensor in tensors if is_plain(tensor) and tensor.nbytes >= _SMALL_BYTES}


@cache
def call_before_steps(action: Callable[[], object]) -> None:
    """Have ``action`` called before each step of any optimizer from now on; asked for again, do nothing.

    Of any: parameters may have a second optimizer, or get another one before the next step.
    """

    def hook(*_arguments: Any) -> None:
        action()

    register_optimizer_step_pre_hook(hook)


def _starts(spans: Spans) -> tuple[dict[int, int], int]:
    """Where in a buffer each span begins, by the span's identity, and how large the buffer has to be."""
    starts, end = {}, 0
    for span in spans:
        starts[id(span)] = end
        end += span.size_bytes + -span.size_bytes % _ALIGNMENT_BYTES
    return starts, end


def _copy_streams(spans: Spans) -> dict[torch.device, torch.cuda.Stream]:
    """A stream for each GPU, behind what that has been told to compute so far and beside what it is told next."""
    streams = {}
    for device in {span.storage.device for span in spans if span.storage.device.type == "cuda"}:
        streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        streams[device].wait_stream(torch.cuda.current_stream(device))
    return streams
