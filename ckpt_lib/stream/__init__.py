"""One-pass I/O: hashes bytes while writing them, and verifies bytes before they are used."""

from ckpt_lib.stream.checking import find_damaged_chunks, find_damages
from ckpt_lib.stream.chunks import Progress
from ckpt_lib.stream.digests import BLOCK_SIZE_BYTES, CHUNK_SIZE_BYTES, FileDigests, StreamDigest
from ckpt_lib.stream.reader import VerifiedFile
from ckpt_lib.stream.writer import HashingWriter

__all__ = [
    "BLOCK_SIZE_BYTES",
    "CHUNK_SIZE_BYTES",
    "FileDigests",
    "HashingWriter",
    "Progress",
    "StreamDigest",
    "VerifiedFile",
    "find_damaged_chunks",
    "find_damages",
]
