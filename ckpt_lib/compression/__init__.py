"""Files in frames that are compressed one by one, so that each can be read by itself.

:class:`CompressingWriter` turns the bytes of a file into frames on their way to the store, and :class:`PlainFile` gives
the bytes back. A *codec* decides what the stored file looks like: docs/FORMAT.md specifies both.
"""

from ckpt_lib.compression.codecs import CODECS
from ckpt_lib.compression.reader import PlainFile
from ckpt_lib.compression.table import Codec, FrameTable
from ckpt_lib.compression.writer import CompressingWriter

__all__ = [
    "CODECS",
    "Codec",
    "CompressingWriter",
    "FrameTable",
    "PlainFile",
]
