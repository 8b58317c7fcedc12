"""The commands ``serve`` and ``token``: the REST API, and who may use it."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ckpt_lib.cli import options
from ckpt_lib.cli.output import Column, as_time, note, print_facts, print_json, print_table
from ckpt_lib.cli.session import read_config
from ckpt_lib.errors import ConfigError

if TYPE_CHECKING:
    from ckpt_lib.web.tokens import TokenFile

Tokens = Annotated[
    Path | None,
    typer.Option(
        "--tokens",
        envvar="CKPT_TOKENS",
        metavar="FILE",
        help="The file of tokens. Default: tokens.json in the configuration folder of the user.",
    ),
]


def serve(
    *,
    store: options.Store = None,
    config: options.Config = None,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="0 chooses a free one.")] = 8300,
    tokens: Tokens = None,
    without_tokens: Annotated[
        bool, typer.Option("--no-tokens", help="Let anyone on this machine do anything, without a token.")
    ] = False,
    read_only: Annotated[bool, typer.Option("--read-only", help="Refuse whatever changes the store.")] = False,
) -> None:
    """Serve the REST API of a store until Ctrl-C.

    Who asks needs a token of `ckpt token`. Where there is none, one for this run alone is printed. Other machines reach
    the server only if --host says so.

    Example: ckpt serve --store runs --port 8300
    """
    from ckpt_lib.web import ServerSettings
    from ckpt_lib.web.server import run

    with ExitStack() as stack:
        path = None if without_tokens else (tokens or _default_path())
        if path is not None and not path.exists():
            path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ckpt-"))) / "tokens.json"
            note(f"Token of this run: {_new_token(path)}")
        settings = ServerSettings(
            config=read_config(store, config), host=host, port=port, tokens_path=path, read_only=read_only
        )
        run(settings, tell=lambda url: note(f"Serving {settings.config.checkpoint_dir} at {url}; Ctrl-C ends it."))


def token(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Who gets the token. Omit it to list all tokens.")
    ] = None,
    *,
    scope: Annotated[str, typer.Option(metavar="SCOPE", help="read, write (and read) or delete (and both).")] = "read",
    days: Annotated[
        float | None, typer.Option(metavar="DAYS", min=0, help="How long it is valid. Default: always.")
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take the token back.")] = False,
    tokens: Tokens = None,
    as_json: options.AsJson = False,
) -> None:
    """Create a token for `ckpt serve`, take one back, or list them.

    A token is shown once: only its digest is stored. A server notices changes at once.

    Example: ckpt token laptop --scope write --days 30
    """
    from ckpt_lib.web.tokens import SCOPES, TokenFile

    file = TokenFile(tokens or _default_path())
    if name is None:
        _print_tokens(file, as_json=as_json)
        return
    if remove:
        gone = file.remove(name)
        print_json({"removed": gone.name}) if as_json else print_facts({"removed": gone.name})
        return
    if scope not in SCOPES:
        raise ConfigError(f"{scope!r} is no scope", expected=", ".join(SCOPES))
    text = file.create(name, scope, lifetime=None if days is None else timedelta(days=days))
    print_json({"name": name, "scope": scope, "token": text}) if as_json else print_facts({"token": text})
    if not as_json:
        note("It is not shown again. Send it as `Authorization: Bearer TOKEN`.")


def _print_tokens(file: TokenFile, *, as_json: bool) -> None:
    found = file.tokens()
    if as_json:
        print_json({"tokens": [item.model_dump(mode="json", exclude={"sha256"}) for item in found]})
        return
    rows = [(item.name, item.scope, as_time(item.expires_at) if item.expires_at else "never") for item in found]
    print_table((Column("name"), Column("scope"), Column("expires")), rows)


def _default_path() -> Path:
    from platformdirs import user_config_path

    return user_config_path("ckpt") / "tokens.json"


def _new_token(path: Path) -> str:
    from ckpt_lib.web.tokens import TokenFile

    return TokenFile(path).create("this run", "delete")
