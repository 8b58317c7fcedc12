"""Errors as responses: ``application/problem+json`` (RFC 9457), with the messages of the library."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Self, cast

import fastapi
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    model_serializer,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema
from starlette.exceptions import HTTPException
from starlette.routing import compile_path

from ckpt_lib import errors
from ckpt_lib.core.damage import Damage
from ckpt_lib.core.logs import logger
from ckpt_lib.web.hints import in_words_of_the_api
from ckpt_lib.web.request_errors import Described, told_of
from ckpt_lib.web.settings import PREFIX

MEDIA_TYPE = "application/problem+json"
HTTP_ERROR = "HTTPError"
"""The type of what HTTP itself refuses, whose title is that of the status."""
_SAID = {
    HTTPStatus.NOT_FOUND.phrase: (
        "there is nothing at this address",
        f"Addresses of the API begin with {PREFIX}; `GET {PREFIX}/openapi.json` lists them.",
    ),
    HTTPStatus.METHOD_NOT_ALLOWED.phrase: ("this address has no such method", "Allow names those that it has."),
    "There was an error parsing the body": ("the body cannot be read as text", "Send JSON in UTF-8."),
}
"""What the router and FastAPI say, and what to say instead, with what to do."""
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z][a-z]*")

_STATUS_OF_CLASS: tuple[tuple[type[Exception], HTTPStatus], ...] = (
    # The first match counts.
    (errors.CheckpointNotFoundError, HTTPStatus.NOT_FOUND),
    (errors.ExperimentNotFoundError, HTTPStatus.NOT_FOUND),
    (errors.JobNotFoundError, HTTPStatus.NOT_FOUND),
    (errors.UploadNotFoundError, HTTPStatus.NOT_FOUND),
    (errors.ExportNotFoundError, HTTPStatus.NOT_FOUND),
    (errors.LimitError, HTTPStatus.TOO_MANY_REQUESTS),
    (errors.UploadConflictError, HTTPStatus.CONFLICT),
    (errors.CheckpointExistsError, HTTPStatus.CONFLICT),
    (errors.ProtectedCheckpointError, HTTPStatus.CONFLICT),
    (errors.MetricConflictError, HTTPStatus.CONFLICT),
    (errors.AlreadyRunningError, HTTPStatus.CONFLICT),
    (errors.VersionConflictError, HTTPStatus.CONFLICT),
    (errors.IntegrityError, HTTPStatus.CONFLICT),
    (errors.StorageFullError, HTTPStatus.INSUFFICIENT_STORAGE),
    (errors.NotAStoreError, HTTPStatus.SERVICE_UNAVAILABLE),
    (errors.StoreError, HTTPStatus.SERVICE_UNAVAILABLE),
    (errors.CheckpointError, HTTPStatus.UNPROCESSABLE_ENTITY),
)
"""A damaged checkpoint is a conflict with the state of what is asked for: the request is right, and may be right again
after a repair."""


class Refusal(fastapi.HTTPException):
    """What HTTP itself refuses, with what was expected and what to do."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        expected: str | None = None,
        hint: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(status, detail, headers)
        self.expected = expected
        self.hint = hint


class Problem(BaseModel):
    """An error of a request or a job. What is null or empty is left out."""

    model_config = ConfigDict(extra="forbid")

    type: str = Field(description="The class of the error, such as CheckpointNotFoundError.")
    title: str = Field(description="What kind of error it is: the same for each of its type.")
    status: int
    detail: str = Field(description="What happened, in a sentence.")
    instance: str | None = Field(default=None, description="What the log of the server calls this very error.")
    checkpoint_id: str | None = None
    expected: str | None = None
    got: str | None = None
    hint: str | None = Field(default=None, description="What to do next.")
    damages: list[Damage] = Field(default=[], description="Which bytes of which files differ, if any do.")

    @classmethod
    def of(cls, kind: str, status: int, detail: str, **more: Any) -> Self:
        """Return a problem of a kind, which is the name of a class."""
        title = HTTPStatus(status).phrase if kind == HTTP_ERROR else title_of(kind)
        return cls(type=kind, title=title, status=status, detail=detail, **more)

    def for_clients(self, experiment: str | None) -> Self:
        """Return the problem with a hint that names operations of the API, where the library's names commands."""
        if self.hint is None:
            return self
        hint = in_words_of_the_api(self.hint, experiment, self.checkpoint_id)
        return self.model_copy(update={"hint": hint})

    @model_serializer(mode="wrap")
    def _of_what_is_known(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if value not in (None, [], ())}

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        # That of the fields: of what a function returns, it would say no more than that it is an object.
        return handler(cast("CoreSchema", {**core_schema, "serialization": None}))


def documented(description: str) -> dict[str, Any]:
    """Return how OpenAPI describes a response that is a problem.

    By name: a client has one class of problems, and not one for each status of each operation.
    """
    schema = {"$ref": f"#/components/schemas/{Problem.__name__}"}
    return {"description": description, "content": {MEDIA_TYPE: {"schema": schema}}}


def refusals(told: Mapping[int, str]) -> dict[int | str, dict[str, Any]]:
    """Return how OpenAPI describes the problems that an operation has beside those of all operations."""
    return {code: documented(description) for code, description in told.items()}


def problem_of(error: errors.CheckpointError) -> Problem:
    """Return an error of the library as a problem. Paths of the server stay on the server."""
    status = next(status for kind, status in _STATUS_OF_CLASS if isinstance(error, kind))
    return Problem.of(
        type(error).__name__,
        status,
        error.message,
        checkpoint_id=error.checkpoint_id,
        expected=None if error.expected is None else str(error.expected),
        got=None if error.got is None else str(error.got),
        hint=error.hint,
        damages=list(getattr(error, "damages", ())),
    )


def title_of(kind: str) -> str:
    """Return the name of a class in words, such as ``Checkpoint not found``."""
    words = _WORD.findall(kind)
    return " ".join(words[:-1] if len(words) > 2 and words[-1] == "Error" else words).capitalize()


def response_of(problem: Problem, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return a problem as a response."""
    return JSONResponse(problem.model_dump(mode="json"), problem.status, headers, media_type=MEDIA_TYPE)


def response_of_status(error: HTTPException) -> JSONResponse:
    """Return an error of HTTP itself as a response."""
    detail = error.detail if isinstance(error.detail, str) else HTTPStatus(error.status_code).phrase
    more = {"expected": error.expected, "hint": error.hint} if isinstance(error, Refusal) else {}
    return response_of(Problem.of(HTTP_ERROR, error.status_code, detail, **more), dict(error.headers or {}))


def response_of_error(error: errors.CheckpointError, experiment: str | None = None) -> JSONResponse:
    """Return an error of the library, in a request about an experiment, as a response."""
    headers = {"Retry-After": str(error.retry_seconds)} if isinstance(error, errors.LimitError) else None
    return response_of(problem_of(error).for_clients(experiment), headers)


def install(app: FastAPI) -> None:
    """Answer every error of an app with a problem."""

    @app.exception_handler(errors.CheckpointError)
    def tell_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, errors.CheckpointError)
        return response_of_error(error, request.path_params.get("experiment"))

    @app.exception_handler(HTTPException)
    def tell_status(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED and (methods := _methods_at(app, request.url.path)):
            error.headers = {"Allow": ", ".join(methods)}  # that of the router names the methods of one function
        if error.detail in _SAID:
            detail, hint = _SAID[error.detail]
            error = Refusal(error.status_code, detail, hint=hint, headers=dict(error.headers or {}))
        return response_of_status(error)

    @app.exception_handler(RequestValidationError)
    def tell_invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return response_of(Problem.of("RequestError", 422, **told_of(error.errors(), Described(app, request))))

    @app.exception_handler(Exception)
    def tell_bug(_: Request, error: Exception) -> JSONResponse:
        instance = uuid.uuid4().urn
        logger.error("a request failed with an unexpected error, %s", instance, exc_info=error)
        return response_of(Problem.of("ServerError", 500, "the server failed; its log says why", instance=instance))


def _methods_at(app: FastAPI, path: str) -> list[str]:
    """Return the methods that the API has at a path."""
    found = (methods for template, methods in app.openapi()["paths"].items() if compile_path(template)[0].match(path))
    return sorted({method.upper() for methods in found for method in methods})
