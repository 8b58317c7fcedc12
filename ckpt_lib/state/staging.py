"""Copies of payloads in memory that is used again for every save, so that training can go on while they are written.

A first copy into fresh memory costs several times as much as the next one into the same memory: the system has to find
and clear every page. So a :class:`StagingBuffer` is kept from save to save.

A copy need not be finished at once either. Where nothing writes to parameters and optimizer state before the
optimizer's next step, their tensors may be copied while the next forward and backward pass run; a hook before the step
calls :meth:`Snapshot.finish`, which copies what is left. What is written to earlier all the same is noticed, and no
copy is handed out.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ckpt_lib.core.wording import listed
from ckpt_lib.errors import StateChangedError
from ckpt_lib.state.spans import Span, Spans, address_of, byte_view, is_plain, map_leaves, tensors_in
from ckpt_lib.state.watching import Caller, SpanWatch, names_of
from ckpt_lib.stream.chunks import processor_count
from ckpt_lib.stream.threads import Helper

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
        self._bytes = torch.empty(0, dtype=torch.uint8, device="cpu")

    @property
    def size_bytes(self) -> int:
        """How much memory it holds."""
        return len(self._bytes)

    def reserve(self, size_bytes: int, *, pinned: bool) -> None:
        """Have at least this much memory, and have touched it. Raises ``MemoryError``."""
        if len(self._bytes) >= size_bytes and self._bytes.is_pinned() >= pinned:
            return
        self._bytes = torch.empty(0, dtype=torch.uint8, device="cpu")  # the old goes first: both may not fit
        try:
            self._bytes = torch.empty(size_bytes, dtype=torch.uint8, device="cpu", pin_memory=pinned)
        except RuntimeError as error:
            raise MemoryError(
                f"there is no memory for a copy of {size_bytes} bytes; a blocking save needs none"
            ) from error
        # Not by PyTorch: in a forked child its threads are missing, and it would wait for them for ever.
        ctypes.memset(self.address, 0, size_bytes)

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


@dataclass(slots=True, eq=False)  # a frozen one takes three times as long to make
class _View:
    """What a tensor says of itself, and where its span begins in the buffer; it stands for the tensor until the copy is
    handed out.
    """

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

    When the constructor returns, everything is copied, and nothing refers to the payload's tensors any more, but the
    memory that only tensors in ``deferred`` (by :func:`place`) use: :meth:`finish` copies that. Tensors that share
    memory share it in the copy. ``buffer`` must not be used for anything else before :meth:`abandon` has returned.
    """

    def __init__(self, payload: dict[str, Any], buffer: StagingBuffer, deferred: Collection[Place] = ()) -> None:
        self._buffer = buffer
        self._caller = Caller()
        spans = Spans(payload)
        starts, size_bytes = _starts(spans)
        buffer.reserve(size_bytes, pinned=any(span.storage.device.type == "cuda" for span in spans))
        self._streams = _copy_streams(spans)
        later = [span for span in spans if deferred and _may_wait(span, deferred)]
        self._deferred = _Deferred(payload, later)
        self._pieces = [
            _Piece(partial(self._deferred.copy, span, copy)) for span in later for copy in self._copies(span, starts)
        ]
        self._copy_now([span for span in spans if not self._deferred.holds(span)], starts)
        self._outline = _outline(payload, spans, starts)

    @property
    def is_complete(self) -> bool:
        """Whether the payload's own tensors may change now."""
        return all(piece.is_done for piece in self._pieces)

    def finish(self) -> None:
        """Copy what is left, and return when the payload's tensors may change.

        What is raised leaves the rest to the next call. A tensor that was written to too early raises nothing here:
        :meth:`payload` does.
        """
        self._copy_deferred(reversed(self._pieces))  # from the end: another thread may be coming from the start
        self._deferred.confirm()

    def finish_in_background(self) -> None:
        """Copy what is left, from the start, on a thread that knows nothing of what others are doing."""
        self._copy_deferred(self._pieces)

    def note_contact(self) -> None:
        """Note that the calling thread is not writing to a tensor."""
        self._caller.note_contact()

    def abandon(self) -> None:
        """Copy nothing more; when this returns, nothing writes to the buffer."""
        for piece in self._pieces:
            piece.skip()

    def payload(self) -> dict[str, Any]:
        """The copy, once all of it is there; its tensors are views of the buffer.

        Raises :class:`~ckpt_lib.errors.StateChangedError` when a tensor was written to before it was copied.
        """
        self._copy_deferred(reversed(self._pieces))
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

    def _copy_deferred(self, pieces: Iterable[_Piece]) -> None:
        for piece in pieces:
            if self._deferred.error is not None:
                self.abandon()  # which waits for what other threads are copying
            piece.copy()

    def _copy_now(self, spans: list[Span], starts: dict[int, int]) -> None:
        pieces: list[_Piece] = []
        for span in spans:
            if span.storage.device.type == "cpu" and span.size_bytes >= _SMALL_BYTES and not span.is_gappy:
                pieces.extend(map(_Piece, self._copies(span, starts)))
            else:
                self._copy(span, starts[id(span)])
        _copy_together(pieces)
        for stream in self._streams.values():
            stream.synchronize()

    def _copy(self, span: Span, start: int) -> None:
        if span.storage.device.type == "cpu" and not span.is_gappy:
            _move(self._buffer.address + start, span.storage, span.start, span.stop)
            return
        target = self._buffer.part(start, start + span.size_bytes)
        if stream := self._streams.get(span.storage.device):
            with torch.cuda.stream(stream):
                target.copy_(span.dense(), non_blocking=True)
        else:
            target.copy_(span.dense())

    def _copies(self, span: Span, starts: dict[int, int]) -> Iterator[Callable[[], object]]:
        """What copies a span's parts, each on one thread: those that PyTorch would take are computing."""
        place = starts[id(span)]
        for start in range(0, span.size_bytes, _PIECE_BYTES):
            stop = min(start + _PIECE_BYTES, span.size_bytes)
            if span.storage.device.type == "cpu":
                target = self._buffer.address + place + start
                yield partial(_move, target, span.storage, span.start + start, span.start + stop)
            else:
                part = self._buffer.part(place + start, place + stop)
                yield partial(self._copy_and_wait, part, span.storage, span.start + start, span.start + stop)

    def _copy_and_wait(self, target: torch.Tensor, storage: torch.UntypedStorage, start: int, stop: int) -> None:
        source = byte_view(storage, start, stop)  # only now: it may have been freed since
        if (stream := self._streams.get(source.device)) is None:
            target.copy_(source)
            return
        with torch.cuda.stream(stream):
            target.copy_(source, non_blocking=True)
        stream.synchronize()


class _Deferred:
    """Spans that are copied later, and whether their tensors were left alone until then."""

    def __init__(self, payload: dict[str, Any], spans: list[Span]) -> None:
        self._payload: dict[str, Any] = payload if spans else {}
        self._watches = {id(span): SpanWatch(span) for span in spans}
        self._lock = threading.Lock()
        self.is_settled = not spans
        """Whether the verdict is in: the tensors may change from then on."""
        self.error: StateChangedError | None = None

    def holds(self, span: Span) -> bool:
        """Whether a span is one of these."""
        return id(span) in self._watches

    def copy(self, span: Span, action: Callable[[], object]) -> None:
        """Copy a part of a span, unless it has changed, and look whether it has changed by then."""
        watch = self._watches[id(span)]
        if not watch.has_changed:  # else its memory may have moved
            action()
        if watch.has_changed:
            self._fail([watch])

    def confirm(self) -> None:
        """Once all is copied, and no operation on the tensors is under way: compare once more, and for the last time.

        A write is counted when it ends, which may be after the part that it spoiled was copied.
        """
        with self._lock:
            if not self.is_settled:
                if changed := [watch for watch in self._watches.values() if watch.has_changed]:
                    self._fail(changed)
                self.is_settled = True
                self._watches, self._payload = {}, {}  # nothing keeps the caller's tensors any longer

    def _fail(self, watches: list[SpanWatch]) -> None:
        if self.error is not None:
            return
        names = list(names_of(self._payload, [watch.span for watch in watches]))
        self.error = StateChangedError(
            f"{listed(names) or 'a tensor'} changed before a background save had copied it",
            expected="no write to parameters and optimizer state before the next optimizer.step()",
            hint="Leave overlap_copy=False, or call the handle's wait_until_copied() before anything writes to them.",
        )


class _Piece:
    """A part that is copied once, by the first thread that asks; an error leaves it to be copied by the next."""

    def __init__(self, action: Callable[[], object]) -> None:
        self._action: Callable[[], object] | None = action
        self._lock = threading.Lock()

    @property
    def is_done(self) -> bool:
        return self._action is None

    def copy(self) -> None:
        if self.is_done:
            return
        with self._lock:
            if self._action is not None:
                self._action()
                self._action = None  # and with it what it would copy

    def skip(self) -> None:
        with self._lock:
            self._action = None


def _copy_together(pieces: list[_Piece]) -> None:
    """Copy all of them, on as many threads as pay; PyTorch does it as fast, but takes longer to begin with each."""
    waiting = deque(pieces)

    def work() -> None:
        with contextlib.suppress(IndexError):  # nothing is left
            while True:
                waiting.popleft().copy()

    helpers = [Helper(work) for _ in range(min(_MAX_THREADS, processor_count(), len(pieces)) - 1)]
    try:
        for helper in helpers:
            helper.start()
        work()
    finally:
        waiting.clear()
        _wait_for(helpers)
    for piece in pieces:  # one that failed on another thread fails here again
        piece.copy()


def _wait_for(helpers: list[Helper]) -> None:
    """Wait for threads, whatever interrupts that: they write to the buffer until they end."""
    interruption: BaseException | None = None
    waiting = deque(helpers)
    while waiting:
        try:
            waiting[0].wait()
            waiting.popleft()
        except BaseException as error:
            interruption = error
    if interruption is not None:
        raise interruption


def _move(target: int, storage: torch.UntypedStorage, start: int, stop: int) -> None:
    ctypes.memmove(target, address_of(storage, start, stop), stop - start)


def _outline(payload: dict[str, Any], spans: Spans, starts: dict[int, int]) -> Any:
    """``payload`` with a :class:`_View` for each plain tensor, and a copy of everything else."""
    views: dict[int, Any] = {}  # the payload holds the tensors, so that ids stay their own

    def view_or_copy(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return copy.deepcopy(value)
        if id(value) not in views:
            views[id(value)] = _view(value, spans.of(value), starts) if is_plain(value) else _whole_copy(value)
        return views[id(value)]

    return map_leaves(payload, view_or_copy)


def _whole_copy(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of a tensor of an unusual kind, with what hangs on it, in memory of its own."""
    # Of tensors that have no storage of their own, torch copies some kinds in this way alone.
    has_storage = tensor.layout is torch.strided and not tensor.is_nested
    copied = copy.deepcopy(tensor) if tensor.is_leaf and has_storage else tensor.detach().clone()
    copied.__dict__.update(copy.deepcopy(tensor.__dict__))  # which parameters do not copy
    return copied


def _may_wait(span: Span, deferred: Collection[Place]) -> bool:
    """Whether nothing but the tensors in ``deferred`` uses a span, and copying it now would take a while.

    Writes to tensors made in inference mode are not counted: these are copied at once.
    """
    if span.size_bytes < _SMALL_BYTES or span.is_gappy:
        return False
    return all(place(tensor) in deferred and not tensor.is_inference() for tensor in span.tensors)


def _view(tensor: torch.Tensor, span: Span, starts: dict[int, int]) -> _View:
    offset, stride = span.place_of(tensor)
    is_parameter = type(tensor) is torch.nn.Parameter
    return _View(
        starts[id(span)],
        span.size_bytes,
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
