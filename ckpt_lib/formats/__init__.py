"""Payload formats: from state to a file or a folder of files, and back."""

from ckpt_lib.formats.base import Format, Layout, Payload, PayloadSink, PayloadSource
from ckpt_lib.formats.registry import (
    check_compression,
    check_format_name,
    compressed_format,
    format_named,
    is_compressed,
    plain_source,
)
from ckpt_lib.formats.selection import check_keys, select

__all__ = [
    "Format",
    "Layout",
    "Payload",
    "PayloadSink",
    "PayloadSource",
    "check_compression",
    "check_format_name",
    "check_keys",
    "compressed_format",
    "format_named",
    "is_compressed",
    "plain_source",
    "select",
]
