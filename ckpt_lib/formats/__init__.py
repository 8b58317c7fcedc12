"""Payload formats: from state to a file, and back."""

from ckpt_lib.formats.base import Format, Layout, Payload
from ckpt_lib.formats.registry import DEFAULT_FORMAT, format_named
from ckpt_lib.formats.selection import check_keys, select

__all__ = ["DEFAULT_FORMAT", "Format", "Layout", "Payload", "check_keys", "format_named", "select"]
