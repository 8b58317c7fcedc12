"""``GET /events``: what changes in the store and in jobs, as it happens."""

from __future__ import annotations

from asyncio import to_thread
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials
from fastapi.sse import EventSourceResponse, ServerSentEvent

from ckpt_lib.web.access import Access, Reader, bearer
from ckpt_lib.web.feed import Feed, FeedEvent
from ckpt_lib.web.watcher import Watcher

router = APIRouter()

MOST_FOLLOWERS = 1_000
_SECONDS_BETWEEN_CHECKS = 15.0
"""After so long without an event, the token is checked again; FastAPI sends a comment as often."""
READY = "ready"


async def _watched(request: Request, who: Reader) -> AsyncIterator[Feed]:
    """Yield the feed, complete from now on, for as long as the stream lasts.

    Raises :class:`~ckpt_lib.errors.LimitError` for more clients than the server serves.
    """
    watcher: Watcher = request.app.state.watcher
    give_back = request.app.state.streams.take(who)
    try:
        await to_thread(watcher.start)
        yield request.app.state.feed
    finally:
        give_back()


@router.get("/events", tags=["read"], response_class=EventSourceResponse)
async def follow_events(
    request: Request,
    _: Reader,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
    feed: Annotated[Feed, Depends(_watched)],
    last_event_id: Annotated[str | None, Header(max_length=100, description="Go on after this event.")] = None,
) -> AsyncIterator[ServerSentEvent]:
    """Follow changes as Server-Sent Events: `job`, `checkpoint.saved`, `.edited`, `.damaged`, `.repaired`, `.deleted`
    and `.undeleted`. At `ready`, read anew what you show: from then on, nothing is missed. The stream has no end.
    """
    access: Access = request.app.state.access
    async for found in feed.follow(last_event_id, idle_seconds=_SECONDS_BETWEEN_CHECKS):
        if not _is_valid(access, credentials):
            return
        if isinstance(found, FeedEvent):
            yield ServerSentEvent(raw_data=found.data, event=found.kind, id=feed.event_id(found.number))
        elif found is not None:
            yield ServerSentEvent(raw_data="{}", event=READY, id=feed.event_id(found))


def _is_valid(access: Access, credentials: HTTPAuthorizationCredentials | None) -> bool:
    """Tell whether the token is still one: a stream may last longer than it is valid."""
    try:
        access.authenticate(credentials.credentials if credentials else None)
    except HTTPException:
        return False
    return True
