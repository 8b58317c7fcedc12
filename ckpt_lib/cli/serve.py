"""The commands ``serve``, ``ui`` and ``token``: the REST API, the page and tokens."""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ckpt_lib.cli import options
from ckpt_lib.cli.mcp import mcp_required
from ckpt_lib.cli.output import Column, as_time, note, print_facts, print_json, print_table
from ckpt_lib.cli.session import read_config, tell_of_no_store
from ckpt_lib.errors import ConfigError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from ckpt_lib.web import ServerSettings
    from ckpt_lib.web.tokens import TokenFile

_MAX_DAYS = 36_500

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
        bool, typer.Option("--no-tokens", help="Allow every request from this machine without a token.")
    ] = False,
    transfers: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Where uploads and exports are kept for a day. Default: a folder of the user."
        ),
    ] = None,
    max_transfers: Annotated[
        str, typer.Option(metavar="SIZE", help="What uploads may take in all, and exports as well.")
    ] = "1TiB",
    read_only: Annotated[bool, typer.Option("--read-only", help="Refuse whatever changes the store.")] = False,
    runner: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="What does long work: threads of the server, or prefect, which makes it flow runs."
        ),
    ] = "threads",
    jobs_folder: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where jobs are written down. Default: a folder of the user."),
    ] = None,
    rate_limit: Annotated[
        float, typer.Option(metavar="N", min=0, help="How many requests a second each token may send; 0: any number.")
    ] = 100,
    with_tools: Annotated[
        bool, typer.Option("--mcp", help="Also serve the tools of `ckpt mcp` that only read, at /mcp.")
    ] = False,
    audit_log: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Append a line for each change to this file. Default: standard error."),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Serve the REST API of a store, and its page if the extra `ui` is installed, until Ctrl-C.

    Every request needs a token; `ckpt token NAME` creates one. If there is none, one for this run is printed. Other
    machines reach the server only with --host.

    Example: ckpt serve --store runs --port 8300
    """
    from pydantic import SecretStr

    from ckpt_lib import page
    from ckpt_lib.web import ServerSettings
    from ckpt_lib.web.server import run
    from ckpt_lib.web.settings import PREFIX
    from ckpt_lib.web.tokens import TokenFile, new_token

    path = None if without_tokens else (tokens or _default_path())
    if tokens is not None and path is not None and not path.exists():
        raise ConfigError(
            "the token file does not exist",
            path=str(path),
            hint=f"`ckpt token NAME --tokens {path}` creates it.",
        )
    run_token = new_token() if path is not None and not TokenFile(path).tokens() else None
    settings = ServerSettings(
        config=read_config(store, config),
        host=host,
        port=port,
        tokens_path=path,
        run_token=None if run_token is None else SecretStr(run_token),
        read_only=read_only,
        requests_per_second=rate_limit or None,
        runner=runner,
        jobs_folder=jobs_folder,
        transfers_folder=transfers,
        max_transfer_bytes=_size_of(max_transfers),
    )

    def announce(url: str) -> None:
        if as_json:
            print_json({"url": f"{url}{PREFIX}", "store": settings.config.checkpoint_dir, "token": run_token})
            sys.stdout.flush()
            return
        if run_token is not None:
            note(f"Token of this run: {run_token}")
        note(f"Serving {settings.config.checkpoint_dir} at {url}{PREFIX}; Ctrl-C ends it.")
        if page.is_installed():
            note(f"The page is at {page.address(url, run_token)}")
        tell_of_no_store(settings.config)

    with _audit_handler(audit_log):
        run(settings, announce=announce, create=partial(_app_of, with_tools=with_tools))


def ui(
    *,
    store: options.Store = None,
    config: options.Config = None,
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="0 chooses a free one.")] = 8300,
    read_only: Annotated[bool, typer.Option("--read-only", help="Refuse whatever changes the store.")] = False,
    in_browser: Annotated[bool, typer.Option("--open", help="Open the page in the browser of this machine.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Serve the page of a store to browsers of this machine until Ctrl-C.

    The printed address signs a browser in. The page needs the extra `ui`; `ckpt serve` serves it to other machines.

    Example: ckpt ui --store runs
    """
    from pydantic import SecretStr

    from ckpt_lib import page
    from ckpt_lib.web import ServerSettings
    from ckpt_lib.web.server import run
    from ckpt_lib.web.tokens import new_token

    page.check_installed()
    token = new_token()
    found = read_config(store, config)
    settings = ServerSettings(config=found, port=port, run_token=SecretStr(token), read_only=read_only)

    def announce(url: str) -> None:
        address = page.address(url, token)
        if as_json:
            print_json({"url": address, "store": found.checkpoint_dir, "token": token})
            sys.stdout.flush()
        else:
            note(f"The page of {found.checkpoint_dir} is at {address}")
            note("Ctrl-C ends it.")
            tell_of_no_store(found)
        if in_browser:
            _open_in_browser(address, Path(folder))

    with _audit_handler(None), tempfile.TemporaryDirectory(prefix="ckpt-") as folder:
        run(settings, announce=announce, create=page.create_app)


def _open_in_browser(address: str, folder: Path) -> None:
    """Open an address by a file that leads to it: other users see the arguments of the browser, and not this folder."""
    import webbrowser
    from html import escape

    file = folder / "page.html"
    file.write_text(f'<!doctype html><meta http-equiv="refresh" content="0;url={escape(address)}">', encoding="utf-8")
    webbrowser.open(file.as_uri())


def token(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A name for the token. Omit it to list all tokens.")
    ] = None,
    *,
    scope: Annotated[str, typer.Option(metavar="SCOPE", help="read, write (and read) or delete (and both).")] = "read",
    days: Annotated[
        float | None, typer.Option(metavar="DAYS", help="How long it is valid, up to 36500. Default: always.")
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Revoke the token.")] = False,
    tokens: Tokens = None,
    as_json: options.AsJson = False,
) -> None:
    """Create a token for `ckpt serve`, revoke one, or list them.

    A token is shown once: only its digest is stored. A server notices changes at once.

    Example: ckpt token laptop --scope write --days 30
    """
    from ckpt_lib.web.tokens import SCOPES, TokenFile

    file = TokenFile(tokens or _default_path())
    if name is None:
        _print_tokens(file, as_json=as_json)
        return
    if remove:
        removed = file.remove(name)
        print_json({"removed": removed.name}) if as_json else print_facts({"removed": removed.name})
        return
    if scope not in SCOPES:
        raise ConfigError(f"{scope!r} is no scope", expected=", ".join(SCOPES))
    if days is not None and not 0 < days <= _MAX_DAYS:
        raise ConfigError("--days is out of range", expected=f"more than 0, at most {_MAX_DAYS}", got=days)
    text = file.create(name, scope, lifetime=None if days is None else timedelta(days=days))
    print_json({"name": name, "scope": scope, "token": text}) if as_json else print_facts({"token": text})
    if not as_json:
        note("It is not shown again. Send it as `Authorization: Bearer TOKEN`.")


def _print_tokens(file: TokenFile, *, as_json: bool) -> None:
    found = file.tokens()
    if as_json:
        print_json({"tokens": [item.model_dump(mode="json", exclude={"sha256"}) for item in found]})
        return
    if not found:
        note("There are no tokens: `ckpt token NAME` creates one.")
        return
    rows = [(item.name, item.scope, as_time(item.expires_at) if item.expires_at else "never") for item in found]
    print_table((Column("name"), Column("scope"), Column("expires")), rows)


def _size_of(text: str) -> int:
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        return TypeAdapter(ByteSize).validate_python(text)
    except ValidationError as error:
        raise ConfigError("--max-transfers is no size", expected="a size such as 500GB", got=text) from error


def _default_path() -> Path:
    from platformdirs import user_config_path

    return user_config_path("ckpt") / "tokens.json"


def _app_of(settings: ServerSettings, *, with_tools: bool) -> FastAPI:
    """Return the API, with the page where its packages are installed, and with the tools for assistants if asked."""
    from ckpt_lib import page
    from ckpt_lib.web import create_app

    app = page.create_app(settings) if page.is_installed() else create_app(settings)
    if with_tools:
        with mcp_required():
            from ckpt_lib.mcp.mounting import mount
        mount(app, settings.config)
    return app


@contextmanager
def _audit_handler(path: Path | None) -> Iterator[None]:
    """Write the audit log to a file, or to stderr."""
    try:
        handler = logging.StreamHandler() if path is None else logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise ConfigError("the audit log cannot be opened", path=str(path), got=error.strerror) from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    audit = logging.getLogger("ckpt_lib.audit")
    level, propagate = audit.level, audit.propagate
    audit.addHandler(handler)
    audit.setLevel(logging.INFO)
    audit.propagate = False
    try:
        yield
    finally:
        audit.removeHandler(handler)
        audit.setLevel(level)
        audit.propagate = propagate
        handler.close()
