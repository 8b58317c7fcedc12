"""How state becomes a payload, and a payload state."""

from ckpt_lib.formats.base import Format, Payload
from ckpt_lib.formats.registry import DEFAULT_FORMAT, format_named

__all__ = ["DEFAULT_FORMAT", "Format", "Payload", "format_named"]
