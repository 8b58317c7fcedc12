"""How a command ends: the exit code of each kind of error, and the one message that is printed about it."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import typer

from ckpt_lib.cli.options import with_options
from ckpt_lib.cli.output import diagnostics, print_json, visible, visible_lines
from ckpt_lib.cli.streams import is_flushed, silence_broken_streams
from ckpt_lib.errors import (
    CheckpointError,
    CheckpointExistsError,
    IntegrityError,
    ProtectedCheckpointError,
    StoreError,
    UnsafePayloadError,
)

OK, DAMAGE, BAD_INPUT, STORE_FAILURE, REFUSED, BUG, INTERRUPTED, OUTPUT_CLOSED = 0, 1, 2, 3, 4, 70, 130, 141

EXIT_CODES = {
    OK: "done; what was checked is intact",
    DAMAGE: "a problem was found: damage, or a finding of `ckpt doctor`",
    BAD_INPUT: "bad usage, or no such checkpoint, experiment, metric or store",
    STORE_FAILURE: "the store failed: no space, no permission, no answer",
    REFUSED: "refused: it is pinned, the name is taken, or nobody confirmed",
    BUG: "a bug in ckpt",
    INTERRUPTED: "interrupted with Ctrl-C",
    OUTPUT_CLOSED: "the reader of the output went away",
}


class ConfirmationError(CheckpointError):
    """A command that deletes was not confirmed; nothing was deleted."""


_CODE_OF_CLASS: tuple[tuple[type[BaseException], int], ...] = (
    # The first that fits counts: most of our errors are builtins as well, a missing checkpoint even an OSError.
    (IntegrityError, DAMAGE),
    (ProtectedCheckpointError, REFUSED),
    (UnsafePayloadError, REFUSED),
    (CheckpointExistsError, REFUSED),
    (ConfirmationError, REFUSED),
    (StoreError, STORE_FAILURE),
    (CheckpointError, BAD_INPUT),
    (typer.TyperException, BAD_INPUT),
    (KeyboardInterrupt, INTERRUPTED),
    (typer.Abort, INTERRUPTED),
    (BrokenPipeError, OUTPUT_CLOSED),
    (OSError, STORE_FAILURE),
)


def exit_code(error: BaseException) -> int:
    """What ``ckpt`` exits with because of ``error``."""
    return next((code for kind, code in _CODE_OF_CLASS if isinstance(error, kind)), BUG)


@contextmanager
def reported(*, as_json: bool) -> Iterator[None]:
    """Turn whatever goes wrong inside into one message and the exit code that belongs to it."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # here, where a closed pipe can still be told from success
    except typer.Exit:
        raise
    except (Exception, KeyboardInterrupt) as error:
        _report(error, as_json=as_json)
        raise typer.Exit(exit_code(error)) from None


def _report(error: BaseException, *, as_json: bool) -> None:
    code = exit_code(error)
    facts = describe(error)
    with suppress(OSError):  # stderr may be what fails; the exit code says it as well
        if code == BUG:
            traceback.print_exception(error, file=sys.stderr)
        if code != OUTPUT_CLOSED and not (as_json and _is_printed(facts)):
            print_error(facts)
    silence_broken_streams()


def _is_printed(facts: dict[str, Any]) -> bool:
    """Print an error as JSON; ``False`` when it is stdout itself that fails."""
    try:
        print_json({"error": facts})
    except OSError:
        return False
    return is_flushed(sys.stdout)


def describe(error: BaseException) -> dict[str, Any]:
    """What is known of an error, with the same keys for every kind of it."""
    facts: dict[str, Any] = dict.fromkeys(("checkpoint_id", "path", "expected", "got", "hint"))
    damages: tuple[Any, ...] = ()
    name, message = type(error).__name__, str(error)
    if isinstance(error, CheckpointError):
        facts = {key: getattr(error, key) for key in facts}
        message = error.message
        damages = getattr(error, "damages", ())
    elif isinstance(error, typer.TyperException):
        name, message = "UsageError", error.format_message()
        context = getattr(error, "ctx", None)
        facts["hint"] = f"`{context.command_path if context else 'ckpt'} --help` shows what there is."
    elif isinstance(error, (KeyboardInterrupt, typer.Abort)):
        name, message = "Interrupted", "interrupted"
        facts["hint"] = "Each checkpoint is as it was, or done."
    elif isinstance(error, OSError):
        message = error.strerror or message
        facts["path"] = error.filename
    return {"type": name, "message": message, **facts, "damages": damages}


def print_error(facts: dict[str, Any]) -> None:
    """Print what :func:`describe` says for people, on stderr."""
    console = diagnostics()
    console.print("Error: ", style="bold red", end="")
    console.print(visible_lines(with_options(facts["message"])), soft_wrap=True)
    for damage in facts["damages"]:
        if damage.message not in facts["message"]:
            console.print(f"  {visible_lines(damage.message)}", soft_wrap=True)
    for key in ("checkpoint_id", "path", "expected", "got"):
        if facts[key] is not None:
            console.print(f"  {key.partition('_')[0]:<12}", style="dim", end="")
            console.print(visible(str(facts[key])), soft_wrap=True)
    if facts["hint"]:
        console.print(visible_lines(with_options(facts["hint"])), style="cyan", soft_wrap=True)
