"""What browsers post to the page: read before Gradio sees it, and refused if it names files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from fastapi import HTTPException, status
from starlette.requests import Request
from starlette.types import Message, Receive

from ckpt_lib.web.gate import MAX_BODY_BYTES

_FILE_TYPE = "gradio.FileData"
"""Marks a file in what is posted. Gradio copies it into its cache from any path or address, for every component: on the
thread of all requests, so that a device without an end would be the end of the server."""


async def read_at_most(request: Request, size_bytes: int) -> bytes:
    """Return the body. Raises HTTPException 413 for a larger one."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > size_bytes:
            raise HTTPException(status.HTTP_413_CONTENT_TOO_LARGE, f"the body is larger than {size_bytes:,} bytes")
    return bytes(body)


async def checked_body(request: Request) -> Receive:
    """Return what receives the body once more. Raises HTTPException 400 for one that is no JSON or names a file."""
    body = await read_at_most(request, MAX_BODY_BYTES)
    try:
        names_file = bool(body) and any(text == _FILE_TYPE for text in _texts(json.loads(body)))
    except (ValueError, RecursionError) as error:
        raise HTTPException(status.HTTP_400_BAD_REQUEST, "the body is no JSON") from error
    if names_file:
        raise HTTPException(status.HTTP_400_BAD_REQUEST, "the page takes no files")
    return _once(body, request.receive)


def _texts(value: Any) -> Iterator[Any]:
    """Yield everything in a JSON value that holds nothing else."""
    waiting = [value]
    while waiting:
        found = waiting.pop()
        if isinstance(found, dict):
            waiting.extend(found.values())
        elif isinstance(found, list):
            waiting.extend(found)
        else:
            yield found


def _once(body: bytes, receive: Receive) -> Receive:
    is_sent = False

    async def receive_again() -> Message:
        nonlocal is_sent
        if is_sent:
            return await receive()  # tells when the browser goes
        is_sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again
