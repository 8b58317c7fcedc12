"""Large files that are being written to a local store."""

from __future__ import annotations

import io
from collections.abc import Callable

from ckpt_lib.errors import StoreError
from ckpt_lib.store.base import Entry
from ckpt_lib.store.local.direct import Output
from ckpt_lib.store.local.os_errors import errors_of_writing
from ckpt_lib.store.local.publishing import Place
from ckpt_lib.store.local.system import System
from ckpt_lib.store.local.temporary import discard
from ckpt_lib.stream.digests import Buffer


class LocalUpload:
    """A file that gets its key when it is complete. A fork of the process that began it cannot go on with it."""

    def __init__(self, file: io.FileIO, place: Place, publish: Callable[[], Entry], system: System) -> None:
        self._file = file
        self._place = place
        self._publish = publish
        self._system = system
        self._output = Output(file, system)

    def write(self, data: Buffer) -> int:
        self._check_open()
        with errors_of_writing(self._place.path):
            return self._output.write(data)

    def commit(self) -> Entry:
        self._check_open()
        try:
            with errors_of_writing(self._place.path):
                self._output.sync()
                return self._publish()
        finally:
            self.abort()

    def abort(self) -> None:
        discard(self._file, self._system)

    def _check_open(self) -> None:
        if self._file.closed:
            raise StoreError(
                "the upload has ended", path=str(self._place.path), hint="Begin another one with open_write."
            )
