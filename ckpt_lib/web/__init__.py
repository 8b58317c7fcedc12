"""The REST API: what other systems, and the page, ask of a store over HTTP."""

from ckpt_lib.web.app import create_app
from ckpt_lib.web.settings import ServerSettings

__all__ = ["ServerSettings", "create_app"]
