"""``create_app``: the REST API of one store."""

from __future__ import annotations

from asyncio import create_task, to_thread
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI

from ckpt_lib.web import downloading, editing, following, problems, reading, retaining, uploading, working
from ckpt_lib.web.access import Access
from ckpt_lib.web.audit import Audit
from ckpt_lib.web.feed import Feed
from ckpt_lib.web.gate import Gate
from ckpt_lib.web.jobs import Jobs
from ckpt_lib.web.managers import Managers
from ckpt_lib.web.places import Places
from ckpt_lib.web.request_errors import refuse_unknown_parameters
from ckpt_lib.web.settings import PREFIX, ServerSettings
from ckpt_lib.web.transfers import Transfers
from ckpt_lib.web.watcher import Watcher

_DESCRIPTION_PATH = f"{PREFIX}/openapi.json"

_ERRORS = {
    400: "The request breaks the rules of HTTP, or its body is no text.",
    401: "There is no token, or it is unknown or has expired.",
    403: "The token or the server does not allow this.",
    405: "The address has other methods, which `Allow` names.",
    422: "The request is not as described here, or asks for what cannot be done.",
    429: "The token has sent too many requests, or has too much going on; `Retry-After` says when to try again.",
    503: "The store, or the file of tokens, does not answer.",
}
"""What any operation may be refused with; each documents besides what is its own."""


def create_app(settings: ServerSettings) -> FastAPI:
    """Return the app that serves a store. Nothing is read before the first request.

    Raises :class:`~ckpt_lib.errors.ConfigError` if other machines could reach it without a token.
    """
    from ckpt_lib import __version__

    settings.check_reachable()
    app = FastAPI(
        lifespan=_with_jobs,
        title="Checkpoints",
        version=__version__,
        summary="Find, check, move and retire the checkpoints of training runs.",
        openapi_url=_DESCRIPTION_PATH,
        generate_unique_id_function=lambda route: route.name,  # the names of functions in generated clients
        redirect_slashes=False,  # each thing has one address
        docs_url=None,  # its page loads scripts from another server
        redoc_url=None,
        responses=problems.refusals(_ERRORS),
        dependencies=[Depends(refuse_unknown_parameters)],
    )
    _equip(app, settings)
    problems.install(app)
    app.add_middleware(
        Gate,
        access=app.state.access,
        settings=settings,
        public_path=_DESCRIPTION_PATH,
        uploads_path=f"{PREFIX}/uploads/",
    )
    app.add_middleware(Audit)  # added last, so that it is outside and sees what the gate refuses
    for module in (reading, editing, working, following, downloading, uploading, retaining):
        app.include_router(module.router, prefix=PREFIX)
    return app


def _equip(app: FastAPI, settings: ServerSettings) -> None:
    """Give an app what its operations work with."""
    state = app.state
    state.access = Access(settings)
    state.managers = Managers(settings.config)
    state.jobs = Jobs(settings.jobs_path(), state.managers, settings.runner)
    state.feed = Feed()
    state.end_streams = [state.feed.close]
    state.streams = Places(following.MOST_FOLLOWERS, "event streams")
    state.previews = Places(retaining.MOST_PREVIEWS, "previews of cleanups")
    state.watcher = Watcher(settings.config, state.jobs, state.feed)
    state.transfers = Transfers(settings)


@asynccontextmanager
async def _with_jobs(app: FastAPI) -> AsyncIterator[None]:
    """Do jobs, and sweep transfers, for as long as an app is served."""
    jobs: Jobs = app.state.jobs
    await to_thread(jobs.open)
    sweeping = create_task(app.state.transfers.sweep_hourly())
    try:
        yield
    finally:
        sweeping.cancel()
        await to_thread(jobs.close)
        await to_thread(app.state.watcher.close)
