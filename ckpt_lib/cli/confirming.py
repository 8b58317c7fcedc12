"""Questions before something is taken away for good."""

from __future__ import annotations

import sys

import typer

from ckpt_lib.cli.errors import ConfirmationError


def refuse_to_ask(*, as_json: bool) -> None:
    """Where nobody can answer, say so before any work is done."""
    if as_json or not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise ConfirmationError(
            "deleting needs a confirmation, and nobody can be asked here", hint="Add --yes if you are sure."
        )


def confirm(question: str) -> None:
    """Ask, and raise :class:`ConfirmationError` unless the answer is yes."""
    if not typer.confirm(question, err=True):
        raise ConfirmationError("not confirmed; nothing was deleted")
