"""One-pass I/O: bytes are hashed as they are written, and verified before they are read."""

from ckpt_lib.stream.checking import find_damaged_chunks, find_damages
from ckpt_lib.stream.chunks import Progress
from ckpt_lib.stream.digests import BLOCK_SIZE_BYTES, CHUNK_SIZE_BYTES, Damage, FileDigests, StreamDigest, missing_file
from ckpt_lib.stream.reader import VerifiedFile
from ckpt_lib.stream.writer import HashingWriter

__all__ = [
    "BLOCK_SIZE_BYTES",
    "CHUNK_SIZE_BYTES",
    "Damage",
    "FileDigests",
    "HashingWriter",
    "Progress",
    "StreamDigest",
    "VerifiedFile",
    "find_damaged_chunks",
    "find_damages",
    "missing_file",
]
