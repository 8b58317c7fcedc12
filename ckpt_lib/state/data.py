"""``ResumableLoader``: a PyTorch ``DataLoader`` that goes on with the batch that would have come next."""

from __future__ import annotations

import copy
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ckpt_lib.errors import ConfigError, StateMismatchError
from ckpt_lib.state.order import WatchedIndices, generators_of, index_sampler_of, sampler_of
from ckpt_lib.state.stateful import UNCHANGED

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

Batch = TypeVar("Batch")


class ResumableLoader(Generic[Batch]):
    """Hands out the batches of a ``DataLoader``, and can go on in the middle of an epoch.

    ::

        loader = ResumableLoader(DataLoader(dataset, batch_size=32, shuffle=True, num_workers=2))
        state = TrainingState(model=model, optimizer=optimizer, data=loader)

    Its state holds the generators that decide an epoch's order and the seeds of worker processes, as they were when the
    epoch began, and how many batches training has taken since. To resume, the order is drawn again from there, and
    those batches are passed over. Without worker processes they are not loaded. Worker processes load them once more,
    since their own generators advance with each sample. ``deterministic=True`` says that the dataset draws no random
    numbers when it loads a sample; then nothing is loaded twice.

    The state also holds a digest of the indices so far. So another order is noticed: that of a dataset that has grown,
    or of a sampler with a random state of its own.
    """

    def __init__(self, loader: DataLoader[Batch], *, deterministic: bool = False) -> None:
        """Raises :class:`~ckpt_lib.errors.ConfigError` for a loader whose position cannot be restored.

        That is one over an iterable dataset that is not ``deterministic``. One with a state of its own, such as
        torchdata's ``StatefulDataLoader``, needs no wrapper.
        """
        from ckpt_lib.state.generators import GlobalGenerators, NamedGenerator

        _check_loader(loader, deterministic=deterministic)
        self.loader = loader
        self._deterministic = deterministic
        self._is_iterable = _is_iterable(loader)
        self._generators = GlobalGenerators()
        self._named = [NamedGenerator(generator) for generator in generators_of(loader)]
        self._indices = WatchedIndices(() if self._is_iterable else index_sampler_of(loader))
        self._source = _own_copy(loader, None if self._is_iterable else self._indices)
        self._start: Mapping[str, Any] | None = None
        """What decided the order of the epoch that goes on; ``None`` between epochs."""
        self._batches_done = 0
        self._to_resume: Mapping[str, Any] | None = None
        self._loops = 0
        self._open_loops = 0
        self._is_disturbed = False
        """Whether a loop was begun while another one was not over: then no position is that of the training."""

    def __len__(self) -> int:
        return len(self.loader)

    @property
    def is_mid_epoch(self) -> bool:
        """True from an epoch's first batch on, until the loop over it has come to its end."""
        return self._start is not None or self._to_resume is not None

    @property
    def batches_done(self) -> int:
        """How many batches of the epoch training has taken; 0 between epochs."""
        return self._batches_done

    def __iter__(self) -> Iterator[Batch]:
        """Begin an epoch or, after :meth:`load_state_dict`, go on in the middle of one.

        Raises :class:`~ckpt_lib.errors.StateMismatchError` when the order is not that of the interrupted epoch.
        """
        self._loops += 1
        loop = self._loops
        self._is_disturbed = self._open_loops > 0
        self._open_loops += 1
        try:
            for batch in self._resumed() if self._to_resume is not None else self._begun():
                if loop == self._loops:  # else another loop has begun meanwhile, and its position counts
                    self._batches_done += 1
                yield batch
            if loop == self._loops:
                self.end_epoch()
        finally:
            self._open_loops -= 1

    def end_epoch(self) -> None:
        """Say that the epoch has ended, after a loop that was left early on purpose.

        By itself, a position stays where a loop was left, by ``break`` or by an error, until another one begins.
        """
        self._start, self._batches_done = None, 0

    def _begun(self) -> Iterator[Batch]:
        self._start = self._state_of_order()
        self._batches_done = 0
        return iter(self._source)

    def _resumed(self) -> Iterator[Batch]:
        stored, now = self._to_resume or {}, self._generators.state_dict()
        count = stored["batches_done"]
        self._restore_order(stored["start"])
        try:
            batches = self._after(count)
        finally:
            self._generators.load_state_dict(now)
            for generator, state in zip(self._named, stored["named"], strict=True):
                generator.load_state_dict(state)  # training may have drawn from them as well
        if self._indices.digest_after(count) != stored["order_digest"]:
            raise StateMismatchError(
                "the data loader does not repeat the order of the interrupted epoch",
                hint="The dataset or its sampler has changed, or the sampler draws from a generator of its own: give "
                "it as generator=. To begin the epoch anew, leave out data=.",
            )
        self._start, self._batches_done, self._to_resume = stored["start"], count, None
        return batches

    def _after(self, count: int) -> Iterator[Batch]:
        """Return the epoch's batches without the first ``count``."""
        must_load = self._is_iterable or (self.loader.num_workers > 0 and not self._deterministic)
        if not must_load:
            self._indices.skip_next(count)
        batches = iter(self._source)
        if must_load:
            for _ in islice(batches, count):
                pass
        else:
            self._indices.skip_now()
        return batches

    def _state_of_order(self) -> dict[str, Any]:
        return {
            "global": self._generators.state_dict(),
            "named": [generator.state_dict() for generator in self._named],
            "sampler_epoch": getattr(sampler_of(self.loader), "epoch", None),
        }

    def _set_sampler_epoch(self, epoch: int | None) -> None:
        sampler = sampler_of(self.loader)
        if epoch is not None and callable(getattr(sampler, "set_epoch", None)):
            sampler.set_epoch(epoch)
        elif epoch is not None:
            sampler.epoch = epoch

    def _restore_order(self, start: Mapping[str, Any]) -> None:
        self._generators.load_state_dict(start["global"])
        for generator, state in zip(self._named, start["named"], strict=True):
            generator.load_state_dict(state)
        self._set_sampler_epoch(start["sampler_epoch"])

    def state_dict(self) -> dict[str, Any]:
        """Return the position. Its size does not depend on that of the dataset."""
        if self._to_resume is not None:
            return dict(self._to_resume)
        return {
            "is_mid_epoch": self.is_mid_epoch,
            "batches_done": self.batches_done,
            "order_digest": self._indices.digest_after(self.batches_done) if self.is_mid_epoch else None,
            "start": self._start,
            "named": [generator.state_dict() for generator in self._named],
            "sampler_epoch": getattr(sampler_of(self.loader), "epoch", None),
            "shape": self._shape(),
            "num_workers": self.loader.num_workers,
            "approximate": self._approximate(),
        }

    def _shape(self) -> dict[str, int | None]:
        """Return what must be the same for a position to mean the same."""
        dataset: Any = self.loader.dataset
        return {
            "samples": None if self._is_iterable or not hasattr(dataset, "__len__") else len(dataset),
            "batch_size": self.loader.batch_size,
            "generators": len(self._named),
        }

    def _approximate(self) -> str | None:
        """Say why the next batches may differ after a resume; ``None`` if they will not."""
        if not getattr(self.loader, "in_order", True):
            return "in_order=False hands out batches as they come"
        if self._is_disturbed:
            return "a loop over it was begun while another one was not over"
        return None

    def approximation_of(self, state: Mapping[str, Any]) -> str | None:
        """Say why the batches after a load of ``state`` may differ from those that would have come."""
        reasons = [state.get("approximate")]
        count, stored = self.loader.num_workers, state.get("num_workers")
        if stored not in (None, count) and not self._deterministic:
            reasons.append(
                f"num_workers={count}, and it was {stored}: if the dataset draws random numbers, they are others"
            )
        return "; ".join(filter(None, reasons)) or None

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Let the next loop go on where the stored one was. Raises :class:`~ckpt_lib.errors.StateMismatchError`."""
        if state["shape"] != self._shape():
            raise StateMismatchError(
                "the data loader is another one than was saved",
                expected=state["shape"],
                got=self._shape(),
                hint=f"{UNCHANGED} To begin the epoch anew, leave out data=.",
            )
        for generator, generator_state in zip(self._named, state["named"], strict=True):
            generator.load_state_dict(generator_state)
        self._set_sampler_epoch(state["sampler_epoch"])
        self.end_epoch()
        self._loops += 1  # a loop that still runs says nothing of the position any more
        self._to_resume = None
        if state["is_mid_epoch"]:
            self._to_resume, self._batches_done = state, state["batches_done"]

    def way_back(self) -> Callable[[], None]:
        """Return a function that brings the position back after a load, also that of a loop that is running."""
        before, named = dict(vars(self)), [generator.state_dict() for generator in self._named]
        sampler_epoch = getattr(sampler_of(self.loader), "epoch", None)

        def back() -> None:
            vars(self).update(before)
            for generator, state in zip(self._named, named, strict=True):
                generator.load_state_dict(state)
            self._set_sampler_epoch(sampler_epoch)

        return back


def _is_iterable(loader: DataLoader[Any]) -> bool:
    from torch.utils.data import IterableDataset

    return isinstance(loader.dataset, IterableDataset)


def _check_loader(loader: Any, *, deterministic: bool) -> None:
    from torch.utils.data import DataLoader

    if not isinstance(loader, DataLoader) or callable(getattr(loader, "state_dict", None)):
        raise ConfigError(
            "ResumableLoader takes a plain DataLoader",
            expected="a torch.utils.data.DataLoader without state_dict()",
            got=type(loader).__name__,
            hint="An object with state_dict() and load_state_dict() is passed as data= itself.",
        )
    if loader.persistent_workers:
        raise ConfigError(
            "workers that persist keep generators of their own from epoch to epoch, which cannot be restored",
            expected="persistent_workers=False",
        )
    if _is_iterable(loader) and not deterministic:
        raise ConfigError(
            "the position in an iterable dataset cannot be restored exactly",
            expected="a dataset with indices",
            got=type(loader.dataset).__name__,
            hint="torchdata's StatefulDataLoader asks a dataset for its state. Or pass deterministic=True for one that "
            "begins each epoch with the same samples; those that were seen are loaded again.",
        )


def _own_copy(loader: DataLoader[Batch], indices: WatchedIndices | None) -> DataLoader[Batch]:
    """Return a copy of a loader, of the same class, with another sampler of batches if it has indices.

    Its worker processes leave signals to the training: a cluster, ``torchrun`` and a terminal send them to all
    processes of a group, and without its workers the training would come to no safe point.
    """
    twin = copy.copy(loader)
    if loader.num_workers:
        twin.worker_init_fn = partial(_begin_worker, loader.worker_init_fn)
    if indices is not None:
        # Assigning to the attribute raises: a loader in use must not change. This one is not in use yet.
        vars(twin)["sampler" if loader.batch_sampler is None else "batch_sampler"] = indices
    return twin


def _begin_worker(own: Callable[[int], object] | None, number: int) -> None:
    """Let a worker process end by SIGTERM of its parent alone, which is how PyTorch ends one, and ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, daemon=True).start()
    if own is not None:
        own(number)


def _end_with_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def is_torchdata(loader: Any) -> bool:
    """Tell whether a loader is torchdata's ``StatefulDataLoader``, which need not be installed."""
    return any(kind.__name__ == "StatefulDataLoader" for kind in type(loader).__mro__)


def draw_first_numbers(loader: Any) -> None:
    """Let a loader draw the random numbers that its next loop begins with, before generators are restored.

    torchdata's ``StatefulDataLoader`` draws the seed of its worker processes for each loop, and so also to go on in an
    epoch, for which the interrupted training had drawn it already. It makes the iterator of the next loop when it is
    asked for its state before that.
    """
    if is_torchdata(loader):
        loader.state_dict()


def approximation_of(loader: Any, state: Mapping[str, Any]) -> str | None:
    """Say why the next batches may not be those that would have come; ``None`` if they will be, as far as is known."""
    if isinstance(loader, ResumableLoader):
        return loader.approximation_of(state)
    return _approximation_of_torchdata(loader) if is_torchdata(loader) else state.get("approximate")


def _approximation_of_torchdata(loader: Any) -> str | None:
    from torch.utils.data import IterableDataset, RandomSampler, SequentialSampler

    sampler = sampler_of(loader)
    if isinstance(loader.dataset, IterableDataset) and loader.num_workers:
        return "torchdata begins anew with what a worker process has read to its end"
    if isinstance(sampler, RandomSampler) and sampler.generator is not None:
        return "torchdata does not keep the loader's generator; ResumableLoader does"
    has_state = callable(getattr(sampler, "state_dict", None))
    if not isinstance(loader.dataset, IterableDataset) and not (
        has_state or isinstance(sampler, RandomSampler | SequentialSampler)
    ):
        return "its sampler has no state; ResumableLoader repeats its order"
    if loader.num_workers and not callable(getattr(loader.dataset, "state_dict", None)):
        return "if the dataset draws random numbers, those in worker processes begin anew; ResumableLoader repeats them"
    return None


def is_mid_epoch(state: Mapping[str, Any]) -> bool | None:
    """Tell from a loader's state whether an epoch goes on; ``None`` if it does not say."""
    if "is_mid_epoch" in state:
        return bool(state["is_mid_epoch"])
    if "_iterator_finished" in state:  # torchdata's
        return not state["_iterator_finished"]
    return None
