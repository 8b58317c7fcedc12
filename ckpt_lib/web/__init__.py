"""The REST API of a store."""

from ckpt_lib.web.app import create_app
from ckpt_lib.web.settings import ServerSettings

__all__ = ["ServerSettings", "create_app"]
