"""Files that clients upload in pieces, and go on with after an interruption."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from ckpt_lib.core.wording import shown, size_text
from ckpt_lib.errors import ConfigError, LimitError, StorageFullError, UploadConflictError, UploadNotFoundError
from ckpt_lib.store.local.os_errors import errors_of_writing, typed_errors
from ckpt_lib.stream import Progress
from ckpt_lib.web.kept_files import KeptFolders, require_room

MOST_UPLOADS = 10_000
_BLOCK_BYTES = 2**20
_PART = r"(?!\.ckpt-)\.?[A-Za-z0-9_][A-Za-z0-9._=+,@-]{0,199}"
_NAME = re.compile(rf"{_PART}(/{_PART}){{0,7}}")


class Upload(BaseModel):
    """A file that is, or was, uploaded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    upload_id: str
    name: str
    size_bytes: int
    sha256: str
    who: str
    created_at: AwareDatetime


class Uploads:
    """The uploads of a server. Threads, and requests for the same upload, may share it.

    Bytes are only ever appended, at the position that the client names, so that two requests at once, or one that was
    repeated, cannot mix up a file. All of it is compared with its digest before it is imported.
    """

    def __init__(self, folder: Path, *, kept_seconds: float, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._root = folder
        self.folders = KeptFolders(folder / "uploads", kept_seconds)
        self.imports = KeptFolders(folder / "imports", kept_seconds)
        self._creating = threading.Lock()
        self._records: dict[str, Upload] = {}
        """Those that were read to know what there is; none changes."""

    def create(self, name: str, size_bytes: int, sha256: str, who: str) -> Upload:
        """Begin an upload.

        Raises :class:`~ckpt_lib.errors.ConfigError` for a name that no file of a checkpoint has,
        :class:`~ckpt_lib.errors.StorageFullError` where there is no room for so many bytes, and
        :class:`~ckpt_lib.errors.LimitError` for too many uploads.
        """
        if not _NAME.fullmatch(name):
            raise ConfigError(
                "the name of the file cannot be used",
                expected="letters, digits and . _ = + , @ -, with / between up to 8 folders",
                got=shown(name),
            )
        with self._creating:  # one after the other, so that no two take the same room
            self._require_room(size_bytes, who)
            return self._created(name, size_bytes, sha256, who)

    def _require_room(self, size_bytes: int, who: str) -> None:
        known = self._known()
        most_each = max(1, MOST_UPLOADS // 2)
        if len(known) >= MOST_UPLOADS or sum(upload.who == who for upload in known) >= most_each:
            raise LimitError(
                "there are too many uploads",
                expected=f"at most {MOST_UPLOADS:,} in all, and {most_each:,} of one token",
                hint="Import some, or DELETE them.",
                retry_seconds=60,
            )
        if sum(upload.size_bytes for upload in known) + size_bytes > self.most_bytes:
            raise StorageFullError(
                "this and the other uploads are larger than the server allows",
                expected=f"at most {size_text(self.most_bytes)} together",
                hint="Import the others, DELETE them, or wait until they expire.",
            )
        require_room(self._root, size_bytes, promised_bytes=sum(map(self._missing_bytes, known)))

    def _missing_bytes(self, upload: Upload) -> int:
        """Return how many bytes are still to come, for which there must be room as well."""
        with suppress(UploadNotFoundError):
            return upload.size_bytes - self.offset_bytes(upload)
        return 0

    def _created(self, name: str, size_bytes: int, sha256: str, who: str) -> Upload:
        upload_id = self.folders.create()
        upload = Upload(
            upload_id=upload_id,
            name=name,
            size_bytes=size_bytes,
            sha256=sha256,
            who=who,
            created_at=datetime.now(UTC).replace(microsecond=0),
        )
        with errors_of_writing(self._data(upload)):
            self._data(upload).touch(mode=0o600)
            self._record(upload_id).write_text(upload.model_dump_json(), encoding="utf-8")
        return upload

    def get(self, upload_id: str) -> Upload:
        """Return an upload. Raises :class:`~ckpt_lib.errors.UploadNotFoundError`."""
        try:
            return Upload.model_validate_json(self._record(upload_id).read_bytes())
        except (OSError, ValidationError) as error:  # a crash may have kept the record from being written
            raise _no_upload() from error

    def get_own(self, upload_id: str, who: str) -> Upload:
        """Return an upload of the token ``who``. Raises as :meth:`get`, also for an upload of another token.

        The id alone is no right to a file: everybody who may read sees the ids in the jobs that import it.
        """
        upload = self.get(upload_id)
        if upload.who != who:
            raise _no_upload()
        return upload

    def offset_bytes(self, upload: Upload) -> int:
        """Return how many bytes are there. Raises as :meth:`get`."""
        try:
            return self._data(upload).stat().st_size
        except FileNotFoundError as error:
            raise _no_upload() from error

    def expires_at(self, upload: Upload) -> float:
        """Return when an upload goes if nothing is added to it, in seconds since 1970. Raises as :meth:`get`."""
        try:
            return self.folders.expires_at(upload.upload_id)
        except FileNotFoundError as error:
            raise _no_upload() from error

    def append(self, upload: Upload, position: int, data: bytes | bytearray) -> None:
        """Add bytes at ``position``.

        Raises :class:`~ckpt_lib.errors.UploadConflictError`, and adds nothing, if the upload goes on at another one,
        and :class:`~ckpt_lib.errors.StoreError` where only a part of them was added.
        """
        with self._locked(upload) as descriptor:
            there = os.fstat(descriptor).st_size
            if position != there:
                raise UploadConflictError(
                    "the upload goes on at another byte", expected=there, got=position, hint="HEAD tells the offset."
                )
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]

    def sync(self, upload: Upload) -> None:
        """Make what was added durable."""
        with self._locked(upload) as descriptor:
            os.fsync(descriptor)

    def remove(self, upload_id: str) -> None:
        """Remove an upload. A failure is logged: it expires anyway."""
        self.folders.remove(upload_id)

    def require_complete(self, upload_ids: Sequence[str], *, who: str | None = None) -> list[Upload]:
        """Return uploads: of any token or, if one is given, of ``who``.

        Raises as :meth:`get` or :meth:`get_own`, :class:`~ckpt_lib.errors.UploadConflictError` if bytes are missing,
        and :class:`~ckpt_lib.errors.ConfigError` if one is named twice.
        """
        if len(set(upload_ids)) < len(upload_ids):
            raise ConfigError("an upload is named twice", expected="each of them once")
        found = [self.get(upload_id) if who is None else self.get_own(upload_id, who) for upload_id in upload_ids]
        for upload in found:
            if (there := self.offset_bytes(upload)) < upload.size_bytes:
                raise UploadConflictError(
                    f"the upload of {shown(upload.name)} is not complete",
                    expected=f"{upload.size_bytes:,} bytes",
                    got=f"{there:,}",
                    hint="PATCH adds the rest.",
                )
        return found

    @contextmanager
    def assembled(self, upload_ids: Sequence[str], progress: Progress) -> Iterator[Path]:
        """Yield the path of a verified file, or of a folder of several. It is gone afterwards; the uploads stay.

        Raises as :meth:`require_complete`, :class:`~ckpt_lib.errors.UploadConflictError` for an upload that differs
        from its digest, and :class:`~ckpt_lib.errors.UploadConflictError` for two of the same name.
        """
        for upload in self.require_complete(upload_ids):
            self._verify(upload, progress)
        with self.laid_out(upload_ids) as path:
            yield path

    @contextmanager
    def laid_out(self, upload_ids: Sequence[str]) -> Iterator[Path]:
        """Do as :meth:`assembled`, but compare no digest: for whoever looks at the structure alone."""
        uploads = self.require_complete(upload_ids)
        token = self.imports.create()
        try:
            root = self.imports.path(token) / "upload"
            for upload in uploads:
                self._link(upload, root / upload.name)
            yield _without_outer_folders(root)
        finally:
            self.imports.remove(token)

    def as_named(self, text: str) -> str:
        """Return a text about files that were laid out, with their names and without the folders of the server."""
        for folder in {str(self._root / "imports"), str((self._root / "imports").absolute())}:
            text = re.sub(rf"{re.escape(folder)}/[0-9a-f]{{32}}/(upload/)?", "", text)
        return text

    def _verify(self, upload: Upload, progress: Progress) -> None:
        digest, size_bytes = hashlib.sha256(), 0
        with self._opened(upload) as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
                size_bytes += len(block)
                progress(len(block))
        if (digest.hexdigest(), size_bytes) != (upload.sha256, upload.size_bytes):
            raise UploadConflictError(
                f"the upload of {shown(upload.name)} differs from its digest",
                expected=f"SHA-256 {upload.sha256}",
                got=digest.hexdigest(),
                hint="Nothing was imported. DELETE the upload, and upload the file anew.",
            )

    def _opened(self, upload: Upload) -> IO[bytes]:
        """Open a file, which is kept from now on as if something was added to it. Raises as :meth:`get`."""
        try:
            self.folders.touch(upload.upload_id)
            return self._data(upload).open("rb")
        except FileNotFoundError as error:  # somebody has deleted it
            raise _no_upload() from error

    def _link(self, upload: Upload, path: Path) -> None:
        """Give a file its name without copying it."""
        with errors_of_writing(path.parent):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                os.link(self._data(upload), path)
            except (FileExistsError, NotADirectoryError) as error:
                raise UploadConflictError(
                    "two uploads have the same name", got=shown(upload.name), hint="DELETE one of them."
                ) from error

    def _known(self) -> list[Upload]:
        found = {}
        for name in self.folders.names():
            with suppress(UploadNotFoundError):  # being created, or removed
                found[name] = self._records.get(name) or self.get(name)
        self._records = found
        return list(found.values())

    @contextmanager
    def _locked(self, upload: Upload) -> Iterator[int]:
        """Open a file to append to it; nobody else does at the same time."""
        with typed_errors(self._data(upload)):
            try:
                descriptor = os.open(self._data(upload), os.O_WRONLY | os.O_APPEND)
            except FileNotFoundError as error:
                raise _no_upload() from error
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield descriptor
            finally:
                os.close(descriptor)

    def _record(self, upload_id: str) -> Path:
        return self.folders.path(upload_id) / "upload.json"

    def _data(self, upload: Upload) -> Path:
        return self.folders.path(upload.upload_id) / "data"


def _without_outer_folders(path: Path) -> Path:
    """Return the folder in which names begin to differ, or the only file."""
    while path.is_dir() and len(entries := list(path.iterdir())) == 1:
        path = entries[0]
    return path


def _no_upload() -> UploadNotFoundError:
    return UploadNotFoundError("there is no such upload", hint="It was imported, deleted, or has expired.")
