"""The command ``mcp``: tools for assistants, over standard input and output."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from ckpt_lib.cli import options
from ckpt_lib.cli.session import read_config
from ckpt_lib.errors import ConfigError


def mcp(
    *,
    store: options.Store = None,
    config: options.Config = None,
    scope: Annotated[
        str, typer.Option(metavar="SCOPE", help="read, write (also edits, copies, repairs) or delete (also deletes).")
    ] = "read",
) -> None:
    """Answer an assistant's questions about a store, by the Model Context Protocol, until its input ends.

    The assistant starts this command and speaks with it over standard input and output. It only reads, unless --scope
    says otherwise.

    Example: ckpt mcp --store runs
    """
    settings = read_config(store, config)
    with mcp_required():
        from ckpt_lib.mcp.server import create_server
    from ckpt_lib.web.tokens import SCOPES

    allowed = next((known for known in SCOPES if known == scope), None)
    if allowed is None:
        raise ConfigError(f"{scope!r} is no scope", expected=", ".join(SCOPES))
    create_server(settings, scope=allowed).run("stdio")


@contextmanager
def mcp_required() -> Iterator[None]:
    """Raise :class:`~ckpt_lib.errors.ConfigError` if an import fails because the package is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("mcp", "mcp_types"):
            raise
        raise ConfigError(
            "the package mcp is not installed", hint="Install it: pip install 'prefect-checkpoints[mcp]'."
        ) from error
