"""``LastOutcome``: what became of the last saves, for who asks why there is no newer checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ckpt_lib.core.facts import CheckpointFacts, GivenFacts
from ckpt_lib.core.not_saved import NotSaved
from ckpt_lib.errors import CheckpointError, StorageFullError

if TYPE_CHECKING:
    from ckpt_lib.saving.background import SaveHandle
    from ckpt_lib.saving.failover import Saved

Facts = CheckpointFacts | GivenFacts


class LastOutcome:
    """Remembers the last failure until a checkpoint is saved. A refusal does not make it forgotten.

    Saves come from several threads; each note replaces one value.
    """

    def __init__(self) -> None:
        self._was_asked = False
        self._reason: NotSaved | None = None
        """Why the last save that was not refused made no new checkpoint in the store."""

    @contextmanager
    def of(self, facts: Facts) -> Iterator[None]:
        """Remember the error that a save inside raises."""
        self._was_asked = True
        try:
            yield
        except Exception as error:
            self._reason = _failure(facts, error)
            raise

    def note(self, facts: Facts, saved: Saved | None, given_up: Exception | None) -> None:
        """Note how a save ended: with a checkpoint or, for ``given_up``, without."""
        if saved is None:
            self._reason = _failure(facts, given_up) if given_up else None
        elif saved.in_fallback:
            self._reason = NotSaved(
                kind="in_fallback",
                message=f"{saved.checkpoint_id} was saved in the fallback folder, because the store failed",
                hint="The next save that does not fail moves it to the store, and so does `ckpt reconcile`.",
                checkpoint_id=saved.checkpoint_id,
                **_place(facts),
            )
        else:
            self._reason = None

    def note_repeat(self, facts: Facts, checkpoint_id: str) -> None:
        """Note that a save repeated an earlier one, so that nothing was written."""
        self._reason = NotSaved(
            kind="already_saved",
            message=f"the save repeats that of {checkpoint_id}: both have the same idempotency key",
            hint="Another key, or compare_content=True where the content differs, makes a checkpoint of its own.",
            checkpoint_id=checkpoint_id,
            **_place(facts),
        )

    def reasons(self, under_way: Sequence[SaveHandle], refusals: Sequence[NotSaved]) -> tuple[NotSaved, ...]:
        """Return all reasons, failures first."""
        if not self._was_asked:
            return (NotSaved(kind="never_asked", message="no save of this manager was called yet"),)
        reasons = [] if (reason := self._reason) is None else [reason]
        return (*reasons, *map(_pending, under_way), *refusals)


def _failure(facts: Facts, error: Exception) -> NotSaved:
    is_full = isinstance(error, StorageFullError)
    known = isinstance(error, CheckpointError)
    advice = "`ckpt advise` says what can go." if is_full else None
    details = "; ".join(filter(None, (str(error), *getattr(error, "__notes__", ()))))
    return NotSaved(
        kind="no_space" if is_full else "failed",
        message=f"the save failed: {details if known else repr(error)}",
        hint=advice,
        error=type(error).__name__,
        **_place(facts),
    )


def _pending(handle: SaveHandle) -> NotSaved:
    facts = handle.facts
    what = "a save" if facts is None else f"the save of epoch {facts.epoch}, step {facts.step},"
    return NotSaved(
        kind="under_way",
        message=f"{what} is still being written in the background",
        hint="flush() waits for it.",
        **({} if facts is None else _place(facts)),
    )


def _place(facts: Facts) -> dict[str, Any]:
    """Return epoch and step, unless they are why the save was refused."""
    given = {"epoch": facts.epoch, "step": facts.step}
    return {name: value for name, value in given.items() if isinstance(value, int) and not isinstance(value, bool)}
