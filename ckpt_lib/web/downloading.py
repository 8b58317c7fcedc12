"""Operations that send files: those of checkpoints as they are stored, and those of exports."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Path, Request, status
from fastapi.responses import Response
from pydantic import BaseModel, Field

from ckpt_lib.core.manifest import FileEntry, Manifest
from ckpt_lib.core.names import is_checkpoint_id
from ckpt_lib.core.wording import count_of, listed, shown
from ckpt_lib.errors import CheckpointNotFoundError, ConfigError
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.layout import payload_name, payload_suffix
from ckpt_lib.experiment.stored_payload import errors_named
from ckpt_lib.web.access import Reader
from ckpt_lib.web.delivery import MEDIA_TYPE, Download
from ckpt_lib.web.exports import Exports, no_export
from ckpt_lib.web.kept_files import FolderId
from ckpt_lib.web.managers import home_of
from ckpt_lib.web.problems import documented, refusals
from ckpt_lib.web.reading import NO_CHECKPOINT, CheckpointName, ExperimentName, manager_of
from ckpt_lib.web.transfers import Transfers

router = APIRouter(tags=["read"])
FileName = Annotated[str, Path(description="The name of a file in the list.", max_length=2_000)]

_CONTENT = {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}
_FILE: dict[str, Any] = {
    "response_class": Response,
    "responses": {
        200: {"description": "The file.", "content": _CONTENT},
        206: {"description": "A part of the file.", "content": _CONTENT},
        304: {"description": "The client has the file already."},
        404: documented("There is no such experiment, checkpoint, export or file."),
        409: documented("The file is damaged or missing, or there are several: nothing of it was sent."),
        416: documented("The range begins behind the end."),
        429: documented("There are too many downloads or requests; `Retry-After` says when to try again."),
    },
    "openapi_extra": {
        "parameters": [
            {"name": "Range", "in": "header", "schema": {"type": "string"}, "description": "Such as bytes=1000-."},
            {"name": "If-Range", "in": "header", "schema": {"type": "string"}, "description": "The ETag of the file."},
            {"name": "If-None-Match", "in": "header", "schema": {"type": "string"}, "description": "ETags of files."},
        ]
    },
}


class FileFacts(BaseModel):
    """A file that can be downloaded."""

    name: str
    size_bytes: int
    sha256: str
    href: str = Field(description="Where it is downloaded, on this server.")


class CheckpointFiles(BaseModel):
    """The files of a checkpoint as they are stored."""

    checkpoint_id: str
    format: str
    items: list[FileFacts]


class ExportFiles(BaseModel):
    """The files of an export."""

    export_id: str
    experiment_name: str | None = Field(description="Null for what was converted without being in the store.")
    checkpoint_id: str | None
    items: list[FileFacts]
    left_out: list[str] = Field(description="What is not in it, or not as it was: one sentence each.")
    expires_at: datetime


# --- of checkpoints ---


@router.get("/experiments/{experiment}/checkpoints/{name}/files", responses=NO_CHECKPOINT)
def list_files(request: Request, _: Reader, experiment: ExperimentName, name: CheckpointName) -> CheckpointFiles:
    """List the files of a checkpoint as they are stored."""
    manifest = _find(request, experiment, name)[1]
    items = [
        FileFacts(
            name=file_name(manifest, file),
            size_bytes=file.size_bytes,
            sha256=file.sha256,
            href=_path_of(request, experiment, manifest, file),
        )
        for file in manifest.files
    ]
    return CheckpointFiles(checkpoint_id=manifest.checkpoint_id, format=manifest.format, items=items)


@router.head("/experiments/{experiment}/checkpoints/{name}/payload", name="head_payload", **_FILE)
@router.get("/experiments/{experiment}/checkpoints/{name}/payload", **_FILE)
def download_payload(
    request: Request,
    _: Reader,
    experiment: ExperimentName,
    name: CheckpointName,
) -> Response:
    """Download the payload of a checkpoint, if that is one file, as it is stored."""
    home, manifest = _find(request, experiment, name)
    if len(manifest.files) > 1:
        raise ConfigError(
            f"the payload has {count_of(len(manifest.files), 'file')}",
            checkpoint_id=manifest.checkpoint_id,
            hint="GET …/files lists them; each is downloaded by itself.",
        )
    return _send(request, home, manifest, manifest.payload, name)


@router.head("/experiments/{experiment}/checkpoints/{name}/files/{file:path}", name="head_file", **_FILE)
@router.get("/experiments/{experiment}/checkpoints/{name}/files/{file:path}", **_FILE)
def download_file(
    request: Request,
    _: Reader,
    experiment: ExperimentName,
    name: CheckpointName,
    file: FileName,
) -> Response:
    """Download one file of a checkpoint, as it is stored."""
    home, manifest = _find(request, experiment, name)
    found = next((entry for entry in manifest.files if file_name(manifest, entry) == file), None)
    if found is None:
        names = [file_name(manifest, entry) for entry in manifest.files]
        raise CheckpointNotFoundError(
            f"the checkpoint has no file {shown(file)}",
            checkpoint_id=manifest.checkpoint_id,
            expected=listed(names, most=3),
        )
    return _send(request, home, manifest, found, name)


def file_name(manifest: Manifest, file: FileEntry) -> str:
    """Return the name that a downloaded file gets: without the claim that kept it apart in the store."""
    if file.part:
        return file.part
    if manifest.is_in_place:
        return file.name
    return payload_name(manifest.checkpoint_id, payload_suffix(file.name, manifest.checkpoint_id))


def _find(request: Request, experiment: str, name: str) -> tuple[Experiment, Manifest]:
    manager = manager_of(request, experiment)
    home = home_of(manager)
    return home, home.get(manager.get_checkpoint(name).checkpoint_id)


def _path_of(request: Request, experiment: str, manifest: Manifest, file: FileEntry) -> str:
    found = {"experiment": experiment, "name": manifest.checkpoint_id, "file": quote(file_name(manifest, file))}
    return str(request.app.url_path_for("download_file", **found))


def _send(request: Request, home: Experiment, manifest: Manifest, file: FileEntry, name: str) -> Response:
    with errors_named(home, manifest, [file]):
        download = Download(
            reader=_open(home, file),
            entry=file,
            name=file_name(manifest, file),
            path=_path_of(request, home.name, manifest, file),
            is_resumable=is_checkpoint_id(name),  # any other name may stand for another one by then
        )
        return download.respond(request)


def _open(home: Experiment, file: FileEntry) -> Any:
    try:
        return home.store.open_read(home.key(file.name))
    except FileNotFoundError as error:
        raise FileNotFoundError(error.errno, "no such payload file", file.name) from error


# --- of exports ---


_NO_EXPORT = refusals({404: "There is no such export, or it has expired."})


def _exports(request: Request) -> Exports:
    transfers: Transfers = request.app.state.transfers
    return transfers.exports


@router.get("/exports/{export_id}", responses=_NO_EXPORT)
def get_export(request: Request, _: Reader, export_id: FolderId) -> ExportFiles:
    """List the files that a job ``export`` has made. They go a day after that."""
    exports = _exports(request)
    export = exports.get(export_id)
    expires_at = exports.expires_at(export_id)
    items = [
        FileFacts(
            name=file.name,
            size_bytes=file.size_bytes,
            sha256=file.sha256,
            href=_path_of_exported(request, export_id, file),
        )
        for file in export.files
    ]
    return ExportFiles(
        export_id=export_id,
        experiment_name=export.experiment_name or None,
        checkpoint_id=export.checkpoint_id or None,
        items=items,
        left_out=list(export.left_out),
        expires_at=datetime.fromtimestamp(expires_at, UTC),
    )


@router.delete(
    "/exports/{export_id}",
    status_code=status.HTTP_204_NO_CONTENT,
    response_description="It is gone.",
    responses=_NO_EXPORT,
)
def remove_export(request: Request, who: Reader, export_id: FolderId) -> Response:
    """Remove an export before its day is over. To another token than the one that asked for it, it is not there."""
    _exports(request).remove(export_id, who)
    return Response(status_code=status.HTTP_204_NO_CONTENT)


@router.head("/exports/{export_id}/files/{file:path}", name="head_export_file", **_FILE)
@router.get("/exports/{export_id}/files/{file:path}", **_FILE)
def download_exported(
    request: Request,
    _: Reader,
    export_id: FolderId,
    file: FileName,
) -> Response:
    """Download one file of an export."""
    exports = _exports(request)
    entry = next((entry for entry in exports.get(export_id).files if entry.name == file), None)
    if entry is None:
        raise no_export()
    try:
        reader = exports.store(export_id).open_read(entry.name)
    except FileNotFoundError as error:
        raise no_export() from error
    return Download(reader, entry, entry.name, _path_of_exported(request, export_id, entry)).respond(request)


def _path_of_exported(request: Request, export_id: str, file: FileEntry) -> str:
    return str(request.app.url_path_for("download_exported", export_id=export_id, file=quote(file.name)))
