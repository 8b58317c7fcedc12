"""The page of a store, for a browser."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from ckpt_lib.errors import ConfigError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from ckpt_lib.web import ServerSettings

_PACKAGES = ("gradio", "plotly")


def is_installed() -> bool:
    """Tell whether the extra ``prefect-checkpoints[ui]`` is installed."""
    return all(find_spec(name) is not None for name in _PACKAGES)


def check_installed() -> None:
    """Raise :class:`~ckpt_lib.errors.ConfigError` without the extra."""
    if not is_installed():
        raise ConfigError(
            "the page needs packages that are not installed",
            expected=" and ".join(_PACKAGES),
            hint="`pip install 'prefect-checkpoints[ui]'` installs them.",
        )


def address(url: str, token: str | None) -> str:
    """Return the address of the page of a server; with a token, one that signs a browser in."""
    return f"{url}/ui/" + ("" if token is None else f"?token={token}")


def create_app(settings: ServerSettings) -> FastAPI:
    """Return the app of the REST API with the page at ``/ui``.

    Raises :class:`~ckpt_lib.errors.ConfigError` without the extra, or as :func:`ckpt_lib.web.create_app`.
    """
    check_installed()
    from ckpt_lib.page.app import mount
    from ckpt_lib.web import create_app as create_api

    return mount(create_api(settings), settings)
