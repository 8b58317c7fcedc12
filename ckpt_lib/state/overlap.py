"""Decides which copies may wait for the optimizer's next step, and notices tensors that were written to before.

Where nothing writes to parameters and optimizer state before the next ``optimizer.step()``, their tensors can be copied
while the next forward and backward pass run. A hook before the step finishes the copy.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from functools import cache
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ckpt_lib.core.wording import listed
from ckpt_lib.errors import StateChangedError
from ckpt_lib.state.ranges import StorageRange, is_plain
from ckpt_lib.state.tree import tensors_in
from ckpt_lib.state.watching import RangeWatch, names_of

SMALL_BYTES = 2**16
"""Smaller tensors are copied at once, which takes no longer than deferring them."""

AddressKey = tuple[int, torch.Size, tuple[int, ...]]


def address_key(tensor: torch.Tensor) -> AddressKey:
    """Return a key that is equal for tensors that are the same view of the same memory."""
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def unchanged_until_step(optimizer: Any) -> set[AddressKey]:
    """Return the keys of all tensors that only the next step changes: the optimizer's parameters and its state.

    The set is empty for an object that is no PyTorch optimizer, or whose steps call no hooks.
    """
    if not isinstance(optimizer, torch.optim.Optimizer) or not getattr(type(optimizer).step, "hooked", False):
        return set()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    tensors = (*parameters, *tensors_in(optimizer.state))
    return {address_key(tensor) for tensor in tensors if is_plain(tensor) and tensor.nbytes >= SMALL_BYTES}


@cache
def call_before_steps(action: Callable[[], object]) -> None:
    """Call ``action`` before each step of every optimizer from now on. A second call with it does nothing.

    Every optimizer counts, since parameters may have several, or get a new one before the next step.
    """

    def hook(*_arguments: Any) -> None:
        action()

    register_optimizer_step_pre_hook(hook)


def may_wait(part: StorageRange, deferred: Collection[AddressKey]) -> bool:
    """Tell whether only tensors in ``deferred`` use this range, and it is large enough to be worth deferring.

    PyTorch does not count writes to tensors made in inference mode, so these are copied at once.
    """
    if part.size_bytes < SMALL_BYTES or part.is_non_contiguous:
        return False
    return all(address_key(tensor) in deferred and not tensor.is_inference() for tensor in part.tensors)


class DeferredCopies:
    """Storage ranges that are copied later, and whether their tensors stayed unchanged until then."""

    def __init__(self, payload: dict[str, Any], parts: list[StorageRange]) -> None:
        self._payload: dict[str, Any] = payload if parts else {}
        self._watches = {id(part): RangeWatch(part) for part in parts}
        self._lock = threading.Lock()
        self.is_settled = not parts
        """True when :meth:`confirm` has decided. From then on the tensors may change."""
        self.error: StateChangedError | None = None

    def holds(self, part: StorageRange) -> bool:
        """Tell whether the copy of this range is deferred."""
        return id(part) in self._watches

    def copy(self, part: StorageRange, action: Callable[[], object]) -> None:
        """Copy bytes of a range with ``action``, and note an error if a tensor in the range has changed by then."""
        watch = self._watches[id(part)]
        if not watch.has_changed:  # its memory may have moved otherwise
            action()
        if watch.has_changed:
            self._fail([watch])

    def confirm(self) -> None:
        """Compare the version counters for the last time, when all is copied and no operation is under way.

        PyTorch counts a write when it ends, which may be after the copy that it spoiled.
        """
        with self._lock:
            if not self.is_settled:
                if changed := [watch for watch in self._watches.values() if watch.has_changed]:
                    self._fail(changed)
                self.is_settled = True
                self._watches, self._payload = {}, {}  # which releases the caller's tensors

    def _fail(self, watches: list[RangeWatch]) -> None:
        if self.error is not None:
            return
        changed = {id(tensor) for watch in watches for tensor in watch.stored.tensors}
        names = list(names_of(self._payload, changed))
        self.error = StateChangedError(
            f"{listed(names) or 'a tensor'} changed before a background save had copied it",
            expected="no write to parameters and optimizer state before the next optimizer.step()",
            hint="Leave overlap_copy=False, or call the handle's wait_until_copied() before anything writes to them.",
        )
