"""``create_app``: the REST API of one store."""

from __future__ import annotations

from asyncio import to_thread
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from ckpt_lib.web import editing, problems, reading, working
from ckpt_lib.web.access import Access
from ckpt_lib.web.audit import Audit
from ckpt_lib.web.gate import Gate
from ckpt_lib.web.jobs import Jobs
from ckpt_lib.web.managers import Managers
from ckpt_lib.web.problems import MEDIA_TYPE, Problem
from ckpt_lib.web.settings import ServerSettings

PREFIX = "/api/v1"

_ERRORS = {400: "The body cannot be read.", 405: "This address has no such method."}
_ERRORS |= {401: "No valid token.", 403: "The token does not allow this.", 404: "There is nothing of that name."}
_ERRORS |= {409: "What is asked for is in another state.", 422: "The request cannot be understood, or not be done."}
_ERRORS |= {413: "The body is too large.", 503: "The store does not answer.", 507: "The store is full."}
_PROBLEM = {MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{Problem.__name__}"}}}
"""By name: a client has one class of problems, and not one for each status of each operation."""


def create_app(settings: ServerSettings) -> FastAPI:
    """Return the app that serves a store. Nothing is read before the first request.

    Raises :class:`~ckpt_lib.errors.ConfigError` if other machines could reach it without a token.
    """
    from ckpt_lib import __version__

    settings.check_reachable()

    @asynccontextmanager
    async def with_jobs(app: FastAPI) -> AsyncIterator[None]:
        jobs: Jobs = app.state.jobs
        await to_thread(jobs.open)
        try:
            yield
        finally:
            await to_thread(jobs.close)

    app = FastAPI(
        lifespan=with_jobs,
        title="Checkpoints",
        version=__version__,
        summary="Find, check, move and retire the checkpoints of training runs.",
        openapi_url=f"{PREFIX}/openapi.json",
        generate_unique_id_function=lambda route: route.name,  # the names of functions in generated clients
        redirect_slashes=False,  # each thing has one address
        docs_url=None,  # its page loads scripts from another server
        redoc_url=None,
        responses={
            code: {
                "description": description,
                "content": {MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{Problem.__name__}"}}},
            }
            for code, description in _ERRORS.items()
        },
    )
    app.state.access = Access(settings)
    app.state.managers = Managers(settings.config)
    app.state.jobs = Jobs(settings.jobs_path(), app.state.managers.of)
    problems.install(app)
    public_path = f"{PREFIX}/openapi.json"
    app.add_middleware(Gate, access=app.state.access, settings=settings, public_path=public_path)
    app.add_middleware(Audit)  # added last, so that it is outside and sees what the gate refuses
    for router in (reading.router, editing.router, working.router):
        app.include_router(router, prefix=PREFIX)
    return app
