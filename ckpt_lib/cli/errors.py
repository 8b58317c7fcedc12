"""Exit codes and error messages of commands."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import typer

from ckpt_lib.cli.options import with_options
from ckpt_lib.cli.output import diagnostics, print_json, visible_lines
from ckpt_lib.cli.streams import is_flushed, silence_broken_streams
from ckpt_lib.core.wording import visible
from ckpt_lib.errors import (
    CheckpointError,
    CheckpointExistsError,
    IntegrityError,
    ProtectedCheckpointError,
    RunUnavailableError,
    StoreError,
    UnsafePayloadError,
)

OK, DAMAGE, BAD_INPUT, STORE_FAILURE, REFUSED, BUG, INTERRUPTED, OUTPUT_CLOSED = 0, 1, 2, 3, 4, 70, 130, 141

EXIT_CODES = {
    OK: "success; everything that was checked is intact",
    DAMAGE: "a problem was found: damage, or a problem that `ckpt doctor` reports",
    BAD_INPUT: "bad usage, or no such checkpoint, experiment, metric or store",
    STORE_FAILURE: "the store, backup location or live run failed: no space, no permission, or no answer",
    REFUSED: "refused: the checkpoint is pinned, the name is taken, or nobody confirmed",
    BUG: "a bug in ckpt",
    INTERRUPTED: "interrupted with Ctrl-C",
    OUTPUT_CLOSED: "the reader closed the output",
}


class ConfirmationError(CheckpointError):
    """A command that deletes was not confirmed; nothing was deleted."""


_CODE_OF_CLASS: tuple[tuple[type[BaseException], int], ...] = (
    # The first match counts. Most errors are builtins too: CheckpointNotFoundError, for example, is an OSError.
    (IntegrityError, DAMAGE),
    (ProtectedCheckpointError, REFUSED),
    (UnsafePayloadError, REFUSED),
    (CheckpointExistsError, REFUSED),
    (ConfirmationError, REFUSED),
    (StoreError, STORE_FAILURE),
    (RunUnavailableError, STORE_FAILURE),
    (CheckpointError, BAD_INPUT),
    (typer.TyperException, BAD_INPUT),
    (KeyboardInterrupt, INTERRUPTED),
    (typer.Abort, INTERRUPTED),
    (BrokenPipeError, OUTPUT_CLOSED),
    (OSError, STORE_FAILURE),
)


def exit_code(error: BaseException) -> int:
    """Return the exit code for ``error``."""
    return next((code for kind, code in _CODE_OF_CLASS if isinstance(error, kind)), BUG)


@contextmanager
def reported(*, as_json: bool) -> Iterator[None]:
    """Turn any error inside into one message and its exit code."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # here, where a closed pipe can still be reported
    except typer.Exit:
        raise
    except (Exception, KeyboardInterrupt) as error:
        _report(error, as_json=as_json)
        raise typer.Exit(exit_code(error)) from None


def _report(error: BaseException, *, as_json: bool) -> None:
    code = exit_code(error)
    facts = describe(error)
    with suppress(OSError):  # stderr may be what fails; the exit code still tells
        if code == BUG:
            traceback.print_exception(error, file=sys.stderr)
        if code != OUTPUT_CLOSED and not (as_json and _is_printed(facts)):
            print_error(facts)
    silence_broken_streams()


def _is_printed(facts: dict[str, Any]) -> bool:
    """Print an error as JSON; return ``False`` if stdout itself fails."""
    try:
        print_json({"error": {**facts, "hint": facts["hint"] and with_options(facts["hint"])}})
    except OSError:
        return False
    return is_flushed(sys.stdout)


def describe(error: BaseException) -> dict[str, Any]:
    """Return the facts of an error, with the same keys for every kind."""
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
        facts["hint"] = f"`{context.command_path if context else 'ckpt'} --help` says what it takes."
    elif isinstance(error, (KeyboardInterrupt, typer.Abort)):
        name, message = "Interrupted", "interrupted"
        facts["hint"] = "No checkpoint is left half changed."
    elif isinstance(error, OSError):
        message = error.strerror or message
        facts["path"] = error.filename
    return {"type": name, "message": message, **facts, "damages": damages}


def print_error(facts: dict[str, Any]) -> None:
    """Print the facts of :func:`describe` for people, on stderr."""
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
