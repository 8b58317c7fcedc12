"""What a process asks of a live run, and what the run answers: one line of JSON each way."""

from __future__ import annotations

import socket
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from ckpt_lib import errors
from ckpt_lib.core.not_saved import NotSaved
from ckpt_lib.core.wording import shown
from ckpt_lib.errors import CheckpointError, ConfigError, RunUnavailableError

MAX_BYTES = 2**20
_DETAILS = ("checkpoint_id", "path", "expected", "got", "hint")


class Question(BaseModel):
    """One thing that a run is asked for. ``name`` is that of the checkpoint to load."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ask: Literal["status", "save", "load"]
    name: str | None = None


class RunStatus(BaseModel):
    """What a live run says about itself."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    run_id: str
    latest_checkpoint: str | None
    """The checkpoint that the run saved or loaded last."""
    last_call_at: AwareDatetime | None
    """When the training loop last called a save or ``serve_requests``: requests are carried out there."""
    saves_at_safe_points: bool
    """Whether ``serve_requests`` saves; otherwise the next save of the loop does."""
    takes_loads: bool
    waiting: int
    """How many requests wait for the training loop."""
    not_saved: tuple[NotSaved, ...]
    """What ``why_not_saved`` returns."""


class Failure(BaseModel):
    """An error as text."""

    type: str
    message: str
    checkpoint_id: str | None = None
    path: str | None = None
    expected: str | None = None
    got: str | None = None
    hint: str | None = None

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        if not isinstance(error, CheckpointError):
            return cls(type="CheckpointError", message=f"the run failed to do it: {shown(error)}")
        details = {name: value for name in _DETAILS if (value := getattr(error, name)) is not None}
        return cls(
            type=type(error).__name__, message=error.message, **{name: str(value) for name, value in details.items()}
        )

    def to_error(self) -> CheckpointError:
        """Return the error, of its class."""
        kind = getattr(errors, self.type, None)
        if not (isinstance(kind, type) and issubclass(kind, CheckpointError)):
            kind = CheckpointError
        return kind(self.message, **{name: getattr(self, name) for name in _DETAILS})


class Answer(BaseModel):
    """What a run answers: one of the three."""

    checkpoint_id: str | None = None
    status: RunStatus | None = None
    failure: Failure | None = None

    def to_line(self) -> bytes:
        return self.model_dump_json().encode() + b"\n"


def read_line(connection: socket.socket) -> bytes:
    """Return what the other side sends up to the end of its line.

    Raises :class:`~ckpt_lib.errors.RunUnavailableError` if there is no such end.
    """
    data = bytearray()
    while not data.endswith(b"\n"):
        piece = connection.recv(2**16)
        data += piece
        if not piece or len(data) > MAX_BYTES:
            raise RunUnavailableError("the message has no end", expected=f"a line of at most {MAX_BYTES} bytes")
    return bytes(data)


def question_in(line: bytes) -> Question:
    """Raises :class:`~ckpt_lib.errors.ConfigError` for anything else."""
    try:
        return Question.model_validate_json(line)
    except ValidationError as error:
        raise ConfigError("a live run cannot read the request", got=shown(line[:100])) from error


def answer_in(line: bytes) -> Answer:
    """Raises :class:`~ckpt_lib.errors.RunUnavailableError` for anything else."""
    try:
        return Answer.model_validate_json(line)
    except ValidationError as error:
        raise RunUnavailableError(
            "the answer of the run cannot be read", hint="It may run with another version of this library."
        ) from error
