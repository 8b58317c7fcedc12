"""A stored file as a response: whole or in part, with its digest, and verified before each byte is sent."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from urllib.parse import quote

import xxhash
from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from ckpt_lib.core.damage import Damage
from ckpt_lib.core.logs import logger
from ckpt_lib.core.manifest import FileEntry
from ckpt_lib.errors import CheckpointError, CorruptCheckpointError, UnsupportedFormatError
from ckpt_lib.store.base import RangeReader
from ckpt_lib.stream.chunks import altered_chunks, chunk_range, size_damage
from ckpt_lib.web.ranges import has_same, requested_range

MEDIA_TYPE = "application/octet-stream"
_MAX_CHUNK_BYTES = 64 * 2**20
"""A chunk is in memory while it is verified and sent. This library writes chunks of 8 MiB."""
_PIECE_BYTES = 2**20
_UNSAFE = re.compile(r"[^A-Za-z0-9._+=@-]")


@dataclass(frozen=True)
class Download:
    """A file to be sent."""

    reader: RangeReader
    entry: FileEntry
    name: str
    """The name that it gets where it is saved."""
    path: str
    """The path of this very file, whatever name was asked for."""
    is_resumable: bool = True
    """False where the path that was asked for may lead to another file by the time that a client goes on."""

    @property
    def etag(self) -> str:
        """The strong validator: equal digests, equal bytes."""
        return f'"{self.entry.sha256}"'

    def respond(self, request: Request) -> Response:
        """Return what answers a GET or HEAD. It closes the reader, also if it raises.

        Raises :class:`~ckpt_lib.errors.CorruptCheckpointError` if the file has another size, or the first chunk that
        was asked for is damaged. Damage behind it breaks the connection: no byte of a damaged chunk is ever sent.
        """
        give_back = _nothing
        try:
            give_back = request.app.state.transfers.downloads.take(request.state.who)
            self._check()
            headers = request.headers
            if has_same(headers, self.etag):
                self._end(give_back)
                return Response(status_code=304, headers={"ETag": self.etag, "Content-Location": self.path})
            wanted = requested_range(headers, self.etag, self.entry.size_bytes) if self._may_be_part(request) else None
            start, stop = wanted or (0, self.entry.size_bytes)
            if request.method == "HEAD":
                self._end(give_back)
                return Response(headers=self._headers(None), media_type=MEDIA_TYPE)
            pieces = verified_pieces(self.reader, self.entry, start, stop)
            first = next(pieces, memoryview(b""))  # before the head: damage here is an error
            return _Delivery(self, chain((first,), pieces), wanted, partial(self._end, give_back))
        except BaseException:
            self._end(give_back)
            raise

    def _end(self, give_back: Callable[[], None]) -> None:
        self.reader.close()
        give_back()

    def _may_be_part(self, request: Request) -> bool:
        return request.method == "GET" and (self.is_resumable or "if-range" in request.headers)

    def _check(self) -> None:
        if damages := size_damage(self.entry, self.reader.size_bytes):
            raise _corrupt(self.entry, damages)
        if min(self.entry.chunk_size_bytes, self.entry.size_bytes) > _MAX_CHUNK_BYTES:
            raise UnsupportedFormatError(
                "the chunks of the file are too large to be verified while they are sent",
                expected=f"chunks of at most {_MAX_CHUNK_BYTES:,} bytes",
                got=f"{self.entry.chunk_size_bytes:,}",
                hint="Export the checkpoint by a job, and download the result.",
            )

    def _headers(self, part: tuple[int, int] | None) -> dict[str, str]:
        digest = base64.b64encode(bytes.fromhex(self.entry.sha256)).decode()
        start, stop = part or (0, self.entry.size_bytes)
        headers = {
            "Accept-Ranges": "bytes",
            "Content-Disposition": content_disposition(self.name),
            "Content-Length": str(stop - start),
            "Content-Location": self.path,
            "ETag": self.etag,
            "Repr-Digest": f"sha-256=:{digest}:",
            "X-Content-Type-Options": "nosniff",
        }
        if part is None:
            return headers | {"Content-Digest": headers["Repr-Digest"]}
        return headers | {"Content-Range": f"bytes {start}-{stop - 1}/{self.entry.size_bytes}"}


class _Delivery(StreamingResponse):
    """Sends a file, and lets the connection break where it is damaged: the length that was announced is not reached."""

    def __init__(
        self,
        download: Download,
        pieces: Iterator[bytes | memoryview],
        part: tuple[int, int] | None,
        end: Callable[[], None],
    ) -> None:
        super().__init__(pieces, 206 if part else 200, download._headers(part), MEDIA_TYPE)
        self._name = download.entry.name
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except (CheckpointError, ClientDisconnect) as error:
            logger.error("the download of %s was broken off: %s", self._name, error)
        finally:
            self._end()


def verified_pieces(reader: RangeReader, entry: FileEntry, start: int, stop: int) -> Iterator[memoryview]:
    """Yield the bytes from ``start`` to ``stop`` in pieces, each chunk after it has been compared.

    Raises :class:`~ckpt_lib.errors.CorruptCheckpointError` in the place of a chunk that differs.
    """
    first = start // entry.chunk_size_bytes
    for number in range(first, -(-stop // entry.chunk_size_bytes)):
        chunk_start, chunk_stop = chunk_range(entry, number)
        data = reader.read_at(chunk_start, chunk_stop)
        if xxhash.xxh3_128_hexdigest(data) != entry.chunk_xxh3_128[number]:
            raise _corrupt(entry, altered_chunks(entry, [number]))
        view = memoryview(data)[max(0, start - chunk_start) : stop - chunk_start]
        for position in range(0, len(view), _PIECE_BYTES):
            yield view[position : position + _PIECE_BYTES]


def content_disposition(name: str) -> str:
    """Return the header that saves a file under a name of the server's choosing, without any folder (RFC 6266)."""
    base = name.replace("\\", "/").rpartition("/")[2].lstrip(".") or "checkpoint"
    plain = _UNSAFE.sub("_", base)
    encoded = "" if plain == base else f"; filename*=UTF-8''{quote(base, safe='')}"
    return f'attachment; filename="{plain}"{encoded}'


def _nothing() -> None:
    """Give back a place that was not taken."""


def _corrupt(entry: FileEntry, damages: list[Damage]) -> CorruptCheckpointError:
    return CorruptCheckpointError(
        damages[0].message,
        damages=damages,
        expected=f"SHA-256 {entry.sha256}",
        hint="Nothing of the damaged part was sent. A job `repair` or `restore` brings it back from a backup.",
    )
