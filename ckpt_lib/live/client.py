"""``LiveRun``: a training of this machine, as another process sees and asks it."""

from __future__ import annotations

import socket

from ckpt_lib.core.wording import duration
from ckpt_lib.errors import RunUnavailableError
from ckpt_lib.live.messages import Answer, Question, RunStatus, answer_in, read_line
from ckpt_lib.live.registry import RunRecord, registered

WAIT_SECONDS = 600.0
"""How long a request waits for the training loop, unless told otherwise."""
_STATUS_SECONDS = 5.0


class LiveRun(RunRecord):
    """A run that was registered by :meth:`ckpt_lib.CheckpointManager.share` and has not ended."""

    def status(self, *, timeout_seconds: float = _STATUS_SECONDS) -> RunStatus:
        """Return what the run says about itself. It answers at once, also in the middle of a step.

        Raises :class:`~ckpt_lib.errors.RunUnavailableError`.
        """
        status = self._ask(Question(ask="status"), timeout_seconds).status
        if status is None:
            raise RunUnavailableError("the run did not tell its status")
        return status

    def save(self, *, timeout_seconds: float = WAIT_SECONDS) -> str:
        """Have the run save at its next safe point, whatever its save policy says, and return the id.

        Raises the error that the save raised, and :class:`~ckpt_lib.errors.RunUnavailableError` if the run ends or
        comes to no safe point in time. The request is withdrawn then; only a save that has begun goes on.
        """
        return self._done(Question(ask="save"), timeout_seconds)

    def load(self, name: str, *, timeout_seconds: float = WAIT_SECONDS) -> str:
        """Have the run load a checkpoint at its next safe point, and return the id that ``name`` stands for.

        Raises as :meth:`save` does, and :class:`~ckpt_lib.errors.ConfigError` if the run takes no loads.
        """
        return self._done(Question(ask="load", name=name), timeout_seconds)

    def _done(self, question: Question, timeout_seconds: float) -> str:
        checkpoint_id = self._ask(question, timeout_seconds).checkpoint_id
        if checkpoint_id is None:
            raise RunUnavailableError("the run did not tell which checkpoint it was")
        return checkpoint_id

    def _ask(self, question: Question, timeout_seconds: float) -> Answer:
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(timeout_seconds)
                connection.connect(self.socket)
                connection.sendall(question.model_dump_json().encode() + b"\n")
                answer = answer_in(read_line(connection))
        except TimeoutError as error:
            raise RunUnavailableError(
                f"{self.owner} did not answer within {duration(timeout_seconds)}",
                hint="Saves and loads wait until its training loop calls a save or serve_requests().",
            ) from error
        except OSError as error:
            if isinstance(error, RunUnavailableError):
                raise
            raise RunUnavailableError(f"{self.owner} does not answer: {error}", path=self.socket) from error
        if answer.failure is not None:
            raise answer.failure.to_error()
        return answer


def live_runs(experiment_name: str | None = None, *, store: str | None = None) -> list[LiveRun]:
    """Return the live runs of this machine and user, the oldest first: those of one experiment, of one store, or all.

    ``store`` is an absolute path or URL. What killed runs left is removed.
    """
    return [
        LiveRun(**dict(record))
        for record in registered()
        if experiment_name in (None, record.experiment_name) and store in (None, record.store)
    ]
