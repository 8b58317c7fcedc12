"""``Conversions``: uploaded files that are converted for browsers, on threads of the server.

They are no jobs: everybody who may read sees those, and a file belongs to the browser that has sent it.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ckpt_lib.core.logs import logger
from ckpt_lib.errors import CheckpointError
from ckpt_lib.web.exports import Export
from ckpt_lib.web.places import Places
from ckpt_lib.web.transfers import Transfers

_WORKERS = 2
_MOST_WAITING = 20
_KEPT = 100
State = Literal["running", "succeeded", "failed", "cancelled"]


@dataclass(frozen=True)
class Conversion:
    """One conversion, and how far it is."""

    conversion_id: str
    state: State = "running"
    done_bytes: int = 0
    export: Export | None = None
    """The files that it made."""
    reason: str = ""
    """Why it failed, and what helps."""
    asked_to_end: threading.Event = field(default_factory=threading.Event)


class _CancelledError(Exception):
    """Ends a conversion from within its progress."""


class Conversions:
    """The conversions of one server, in memory. They end with it; what is left of their files goes after a day."""

    def __init__(self, transfers: Transfers) -> None:
        self._transfers = transfers
        self._lock = threading.Lock()
        self._places = threading.Semaphore(_WORKERS)
        self._waiting = Places(_MOST_WAITING, "conversions")
        self._known: dict[str, Conversion] = {}

    def start(self, upload_ids: Sequence[str], options: Mapping[str, Any], who: str) -> str:
        """Start to convert the uploaded files of one checkpoint; return an id that nobody can guess.

        Raises :class:`~ckpt_lib.errors.LimitError` for too many, in all or of the token ``who``.
        """
        new = Conversion(secrets.token_hex(16))
        give_back = self._waiting.take(who)
        with self._lock:
            ended = [name for name, item in self._known.items() if item.state != "running"]
            for name in ended[:-_KEPT]:
                del self._known[name]
            self._known[new.conversion_id] = new
        work = (new, list(upload_ids), dict(options), give_back)
        threading.Thread(target=self._run, args=work, name="ckpt-conversion", daemon=True).start()
        return new.conversion_id

    def get(self, conversion_id: str) -> Conversion | None:
        """Return a conversion as it is now, if it is known."""
        with self._lock:
            return self._known.get(conversion_id)

    def is_running(self, conversion_id: str) -> bool:
        """Tell whether a conversion has not ended."""
        found = self.get(conversion_id)
        return found is not None and found.state == "running"

    def cancel(self, conversion_id: str) -> None:
        """Ask a conversion to end; it does so at its next step."""
        if found := self.get(conversion_id):
            found.asked_to_end.set()

    def close(self) -> None:
        """Ask all to end."""
        with self._lock:
            for item in self._known.values():
                item.asked_to_end.set()

    def _run(
        self, started: Conversion, upload_ids: list[str], options: dict[str, Any], give_back: Callable[[], None]
    ) -> None:
        ended = self._ended(started, upload_ids, options)
        give_back()
        with self._lock:
            self._known[started.conversion_id] = ended

    def _ended(self, started: Conversion, upload_ids: list[str], options: dict[str, Any]) -> Conversion:
        def progress(size_bytes: int) -> None:
            if started.asked_to_end.is_set():
                raise _CancelledError
            self._add(started.conversion_id, size_bytes)

        with self._places:
            try:
                progress(0)
                uploads = self._transfers.uploads.require_complete(upload_ids)
                size_bytes = sum(upload.size_bytes for upload in uploads)
                with self._transfers.uploads.assembled(upload_ids, progress) as source:
                    export = self._transfers.exports.create_converted(source, size_bytes, options, progress)
                    return replace(started, state="succeeded", export=export)
            except _CancelledError:
                return replace(started, state="cancelled")
            except CheckpointError as error:
                return replace(started, state="failed", reason=self._transfers.uploads.as_named(str(error)))
            except Exception:
                logger.exception("a conversion failed with an unexpected error")
                return replace(started, state="failed", reason="The server failed; its log says why.")

    def _add(self, conversion_id: str, size_bytes: int) -> None:
        with self._lock:
            found = self._known[conversion_id]
            self._known[conversion_id] = replace(found, done_bytes=found.done_bytes + size_bytes)
