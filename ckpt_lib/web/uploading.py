"""Operations that receive files, by the protocol tus 1.0.0 for resumable uploads (https://tus.io)."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from email.utils import formatdate
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, HTTPException, Request, status
from fastapi.responses import Response
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from ckpt_lib.core.wording import shown
from ckpt_lib.errors import ConfigError
from ckpt_lib.web.access import Writer
from ckpt_lib.web.kept_files import FolderId
from ckpt_lib.web.problems import documented, refusals
from ckpt_lib.web.transfers import Transfers
from ckpt_lib.web.uploads import Upload, Uploads

VERSION = "1.0.0"
MEDIA_TYPE = "application/offset+octet-stream"
_BLOCK_BYTES = 2**20
_SHA256 = re.compile(r"(?:^|,)\s*sha-256=:([A-Za-z0-9+/]{43}=):\s*(?:$|,|;)")
_METADATA = r"^([^ ,]+( [A-Za-z0-9+/=]*)?, *)*filename [A-Za-z0-9+/]+={0,2}(, *[^ ,]+( [A-Za-z0-9+/=]*)?)*$"
_DIGESTS = r"(^|,) *sha-256=:[A-Za-z0-9+/]{43}=: *($|,|;)"
_BODY = {"required": True, "content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    412: documented("The client speaks another version of tus."),
}
_CREATES = refusals(
    {
        413: "The file is larger than the server allows.",
        429: "There are too many uploads or requests; `Retry-After` says when to try again.",
        507: "There is no room for the file.",
    }
)
_NO_UPLOAD = refusals(
    {404: "There is no such upload: it was imported or deleted, has expired, or belongs to another token."}
)
_APPENDS = _NO_UPLOAD | refusals(
    {
        409: "The upload goes on at another byte.",
        413: "The upload would become larger than it was begun with.",
        415: f"The body is not {MEDIA_TYPE}.",
        507: "The disk is full.",
    }
)


def _check_version(
    tus_resumable: Annotated[str, Header(include_in_schema=False)] = VERSION,
) -> None:
    if tus_resumable != VERSION:
        title = f"this server speaks tus {VERSION}, not {shown(tus_resumable)}"
        raise HTTPException(status.HTTP_412_PRECONDITION_FAILED, title, {"Tus-Version": VERSION})


router = APIRouter(tags=["write"], dependencies=[Depends(_check_version)], responses=_RESPONSES)


class UploadState(BaseModel):
    """How far an upload is."""

    upload_id: str
    name: str
    size_bytes: int
    sha256: str
    offset_bytes: int = Field(description="How many bytes have arrived.")
    href: str = Field(description="Where it goes on, on this server.")


def uploads_of(request: Request) -> Uploads:
    """Return the uploads of the server."""
    transfers: Transfers = request.app.state.transfers
    return transfers.uploads


@router.options(
    "/uploads", status_code=status.HTTP_204_NO_CONTENT, response_description="The headers say what the server can."
)
def describe_uploads(request: Request, _: Writer) -> Response:
    """Tell which version of tus the server speaks, and how large uploads may be."""
    facts = {"Tus-Version": VERSION, "Tus-Extension": "creation,expiration,termination"}
    limit = {"Tus-Max-Size": str(uploads_of(request).most_bytes)}
    return Response(status_code=status.HTTP_204_NO_CONTENT, headers={"Tus-Resumable": VERSION} | facts | limit)


@router.post("/uploads", status_code=status.HTTP_201_CREATED, responses=_CREATES)
def create_upload(
    request: Request,
    response: Response,
    who: Writer,
    *,
    upload_length: Annotated[int, Header(ge=0, lt=2**63, description="The size of the file in bytes.")],
    upload_metadata: Annotated[
        str,
        Header(
            max_length=4_000,
            description="`filename` and, behind a blank, the name in Base64.",
            examples=["filename bW9kZWwucHQ="],
            json_schema_extra={"pattern": _METADATA},  # for clients; the refusal says it in words
        ),
    ],
    repr_digest: Annotated[
        str,
        Header(
            max_length=1_000,
            description="The SHA-256 of the file, as `sha-256=:BASE64:` (RFC 9530).",
            examples=["sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:"],
            json_schema_extra={"pattern": _DIGESTS},
        ),
    ],
) -> UploadState:
    """Begin the upload of one file. `Location` is where its bytes go, by PATCH."""
    uploads = uploads_of(request)
    if upload_length > uploads.most_bytes:
        title = f"the file is larger than this server allows, {uploads.most_bytes:,} bytes"
        raise HTTPException(status.HTTP_413_CONTENT_TOO_LARGE, title)
    upload = uploads.create(_filename_in(upload_metadata), upload_length, _sha256_in(repr_digest), who)
    state = _state(request, upload, 0)
    response.headers.update({"Location": state.href} | _headers(uploads, upload, 0))
    return state


@router.head(
    "/uploads/{upload_id}",
    response_class=Response,
    response_description="The headers say how far it is.",
    responses=_NO_UPLOAD,
)
def show_offset(request: Request, who: Writer, upload_id: FolderId) -> Response:
    """Tell how far an upload is, in `Upload-Offset`."""
    uploads = uploads_of(request)
    upload = uploads.get_own(upload_id, who)
    offset = uploads.offset_bytes(upload)
    return Response(headers={"Cache-Control": "no-store"} | _headers(uploads, upload, offset))


@router.get("/uploads/{upload_id}", responses=_NO_UPLOAD)
def get_upload(request: Request, response: Response, who: Writer, upload_id: FolderId) -> UploadState:
    """Show an upload."""
    uploads = uploads_of(request)
    upload = uploads.get_own(upload_id, who)
    state = _state(request, upload, uploads.offset_bytes(upload))
    response.headers.update({"Cache-Control": "no-store"} | _headers(uploads, upload, state.offset_bytes))
    return state


@router.patch(
    "/uploads/{upload_id}",
    status_code=status.HTTP_204_NO_CONTENT,
    openapi_extra={"requestBody": _BODY},
    response_description="The headers say how far it is now.",
    responses=_APPENDS,
)
async def append_to_upload(
    request: Request,
    who: Writer,
    upload_id: FolderId,
    upload_offset: Annotated[int, Header(ge=0, lt=2**63, description="Where the bytes of this request begin.")],
) -> Response:
    """Add bytes to an upload. What has arrived when a connection breaks stays; HEAD tells where to go on."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != MEDIA_TYPE:
        raise HTTPException(status.HTTP_415_UNSUPPORTED_MEDIA_TYPE, f"the Content-Type must be {MEDIA_TYPE}")
    uploads = uploads_of(request)
    receiver = _Receiver(uploads, await run_in_threadpool(uploads.get_own, upload_id, who), upload_offset)
    await receiver.begin(request.headers.get("content-length", "0"))
    try:
        await receiver.take(request)
    except ClientDisconnect:  # nobody reads the answer
        return Response(status_code=status.HTTP_400_BAD_REQUEST)
    headers = await run_in_threadpool(_headers, uploads, receiver.upload, receiver.position)
    return Response(status_code=status.HTTP_204_NO_CONTENT, headers=headers)


@router.delete(
    "/uploads/{upload_id}",
    status_code=status.HTTP_204_NO_CONTENT,
    response_description="It is gone.",
    responses=_NO_UPLOAD,
)
def cancel_upload(request: Request, who: Writer, upload_id: FolderId) -> Response:
    """Remove an upload."""
    uploads = uploads_of(request)
    uploads.remove(uploads.get_own(upload_id, who).upload_id)
    return Response(status_code=status.HTTP_204_NO_CONTENT, headers={"Tus-Resumable": VERSION})


class _Receiver:
    """Appends the body of a request to an upload, a block at a time, so that it takes little memory."""

    def __init__(self, uploads: Uploads, upload: Upload, position: int) -> None:
        self._uploads = uploads
        self.upload = upload
        self.position = position
        self._buffer = bytearray()

    async def begin(self, content_length: str) -> None:
        """Refuse a body that does not fit, before any of it is read."""
        await run_in_threadpool(self._uploads.append, self.upload, self.position, b"")
        self._refuse_more_than(int(content_length) if content_length.isdecimal() else 0)

    async def take(self, request: Request) -> None:
        """Append the body. What has arrived is durable afterwards, also if the connection breaks."""
        is_ending = False
        try:
            async for piece in request.stream():
                self._refuse_more_than(len(self._buffer) + len(piece))
                self._buffer += piece
                if len(self._buffer) >= _BLOCK_BYTES:
                    await self._flush()
        except asyncio.CancelledError:  # the server ends, and waits for no other thread
            is_ending = True
            self._uploads.append(self.upload, self.position, self._buffer)
            self._uploads.sync(self.upload)
            raise
        finally:
            if not is_ending:
                await self._flush()
                await run_in_threadpool(self._uploads.sync, self.upload)

    async def _flush(self) -> None:
        block, self._buffer = self._buffer, bytearray()
        if block:
            await run_in_threadpool(self._uploads.append, self.upload, self.position, block)
            self.position += len(block)

    def _refuse_more_than(self, size_bytes: int) -> None:
        if self.position + size_bytes > self.upload.size_bytes:
            title = f"the upload would become larger than the {self.upload.size_bytes:,} bytes that it was begun with"
            raise HTTPException(status.HTTP_413_CONTENT_TOO_LARGE, title)


def _state(request: Request, upload: Upload, offset_bytes: int) -> UploadState:
    shown_facts = upload.model_dump(include=set(UploadState.model_fields))
    href = str(request.app.url_path_for("get_upload", upload_id=upload.upload_id))
    return UploadState(**shown_facts, offset_bytes=offset_bytes, href=href)


def _headers(uploads: Uploads, upload: Upload, offset_bytes: int) -> dict[str, str]:
    expires_at = formatdate(uploads.expires_at(upload), usegmt=True)
    offset = {"Upload-Offset": str(offset_bytes), "Upload-Length": str(upload.size_bytes)}
    return {"Tus-Resumable": VERSION, "Upload-Expires": expires_at} | offset


def _filename_in(metadata: str) -> str:
    """Return the name in the metadata of tus: pairs of a key and a value in Base64."""
    pairs = dict(pair.strip().partition(" ")[::2] for pair in metadata.split(","))
    try:
        return base64.b64decode(pairs["filename"], validate=True).decode()
    except (KeyError, binascii.Error, UnicodeDecodeError) as error:
        raise ConfigError(
            "Upload-Metadata does not name the file", expected="filename, a blank, and the name in Base64"
        ) from error


def _sha256_in(digest: str) -> str:
    found = _SHA256.search(digest)
    if found is None:
        raise ConfigError(
            "Repr-Digest holds no SHA-256 of the file",
            expected="sha-256=:BASE64:",
            got=shown(digest),
            hint="`openssl dgst -sha256 -binary FILE | base64` prints the digest.",
        )
    return base64.b64decode(found[1]).hex()
