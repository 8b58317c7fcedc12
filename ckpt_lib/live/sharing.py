"""``Sharing``: saves and loads that other processes ask of a run, carried out where its training loop allows it.

A request is carried out on the thread of the training, within a save that the loop makes or within
``serve_requests``, and never in the middle of a step. What fails in it is told to who asked and does not reach the
training.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ckpt_lib.core.logs import logger
from ckpt_lib.core.owners import Owner
from ckpt_lib.errors import CheckpointError, ConfigError, RankError, StoreError
from ckpt_lib.experiment.lineage import Lineage
from ckpt_lib.experiment.locations import Locations
from ckpt_lib.live.messages import RunStatus
from ckpt_lib.live.registry import RunRecord, forget, new_socket_path, register
from ckpt_lib.live.server import Request, RequestServer, check_possible
from ckpt_lib.saving.background import SaveHandle
from ckpt_lib.saving.ranks import place_of_process
from ckpt_lib.saving.request import Asked, SaveRequest, request_from
from ckpt_lib.saving.saver import Saver
from ckpt_lib.store import location

State = Callable[[], Mapping[str, Any] | None]
Load = Callable[[str], object]


class _Shared(NamedTuple):
    """A run that is shared."""

    server: RequestServer
    state: State | None
    load: Load | None
    process_id: int


class Sharing:
    """Passes saves on to a saver, and makes them for other processes as well while the run is shared."""

    def __init__(self, saver: Saver, locations: Locations, lineage: Lineage) -> None:
        self._saver = saver
        self._locations = locations
        self._lineage = lineage
        self._shared: _Shared | None = None
        self._last_call_at: datetime | None = None

    # --- what the training loop calls ---

    def save(self, request: SaveRequest) -> str | None:
        """Save; a request of another process makes it a save that the policy cannot refuse."""
        waiting = self._take("save")
        if not waiting:
            return self._saver.save(request)
        asked = Asked()
        try:
            checkpoint_id = self._saver.save(replace(request, asked=asked))
        except BaseException as error:
            _answer(waiting, error)
            raise
        _answer(waiting, checkpoint_id or asked.error or self._nothing_saved())
        return checkpoint_id

    def start(self, request: SaveRequest) -> SaveHandle:
        """Save in the background, likewise; who asked is answered when the checkpoint is durable."""
        waiting = self._take("save")
        if not waiting:
            return self._saver.start(request)
        asked = Asked()
        try:
            handle = self._saver.start(replace(request, asked=asked))
        except BaseException as error:
            _answer(waiting, error)
            raise
        handle.add_done_callback(partial(self._answer_when_done, waiting, asked))
        return handle

    def serve(self) -> None:
        """Carry out what waits: loads and, if the run was shared with a state, saves."""
        self._last_call_at = datetime.now(UTC)
        if (shared := self._shared_here()) is None:
            return
        is_alone = place_of_process()[1] == 1
        if shared.state is not None and is_alone and (waiting := self._take("save")):
            self._save_state(shared.state, waiting)
        for request in self._take("load"):
            if shared.load is not None and is_alone:
                self._load(shared.load, request)
            else:
                request.answer(RankError("a training of several ranks takes no loads", expected="a single process"))

    # --- requests ---

    def _take(self, ask: str) -> list[Request]:
        self._last_call_at = datetime.now(UTC)
        shared = self._shared_here()
        return shared.server.take(ask) if shared else []

    def _shared_here(self) -> _Shared | None:
        """Return the shared run of this process: a forked child has none."""
        shared = self._shared
        return shared if shared is not None and shared.process_id == os.getpid() else None

    def _answer_when_done(self, waiting: list[Request], asked: Asked, handle: Future[str | None]) -> None:
        error = Future.exception(handle)  # which does not take it for seen
        saved = None if error else Future.result(handle)
        _answer(waiting, saved or error or asked.error or self._nothing_saved())

    def _save_state(self, state: State, waiting: list[Request]) -> None:
        asked = Asked(is_extra=True)
        try:
            given = state()
            request = None if given is None else request_from({**given, "force": True})
        except Exception as error:
            logger.exception("state() failed, which another process had asked for")
            _answer(waiting, error)
            return
        except BaseException as error:
            _answer(waiting, error)
            raise
        if request is None:
            _answer(waiting, self._lineage.parent_id or ConfigError("there is nothing to save yet"))
            return
        try:
            checkpoint_id = self._saver.save(replace(request, asked=asked))
        except BaseException as error:  # of an earlier save, which concerns the training
            _answer(waiting, error)
            raise
        _answer(waiting, checkpoint_id or asked.error or self._nothing_saved())

    def _load(self, load: Load, request: Request) -> None:
        try:
            manifest = self._locations.catalogue.resolve(request.question.name or "latest")
            load(manifest.checkpoint_id)
        except Exception as error:
            logger.exception("a load that another process had asked for failed")
            request.answer(error)
        except BaseException as error:
            request.answer(error)
            raise
        else:
            request.answer(manifest.checkpoint_id)

    def _nothing_saved(self) -> CheckpointError:
        reasons = self._saver.why_not_saved()
        return StoreError(reasons[0].message if reasons else "nothing was saved")

    # --- registration ---

    @contextmanager
    def share(self, state: State | None, load: Load | None) -> Iterator[None]:
        """Share the run while the context lasts; ranks but the first do nothing."""
        for name, function in (("state", state), ("load", load)):
            if function is not None and not callable(function):
                raise ConfigError(f"{name} must be a function", got=type(function).__name__)
        if self._shared_here() is not None:
            raise ConfigError("the run is shared already", hint="One `with manager.share():` is enough.")
        if place_of_process()[0] > 0:
            yield
            return
        check_possible()
        record = self._record()
        registration: Path | None = None
        try:
            registration = register(record)
            server = RequestServer(Path(record.socket), self.status, takes_loads=load is not None)
            self._shared = _Shared(server, state, load, os.getpid())
            try:
                yield
            finally:
                self._end()
        finally:
            if record.owner.pid == os.getpid():
                forget(registration, record)

    def _end(self) -> None:
        shared, self._shared = self._shared_here(), None
        if shared is not None:
            shared.server.close()

    def _record(self) -> RunRecord:
        return RunRecord(
            owner=Owner.current(),
            experiment_name=self._locations.name,
            store=location(self._locations.home.store),
            run_id=self._lineage.run_id,
            shared_at=datetime.now(UTC),
            socket=str(new_socket_path()),
        )

    def status(self) -> RunStatus:
        """Describe the run. Any thread may ask."""
        shared = self._shared
        return RunStatus(
            run_id=self._lineage.run_id,
            latest_checkpoint=self._lineage.parent_id,
            last_call_at=self._last_call_at,
            saves_at_safe_points=shared is not None and shared.state is not None,
            takes_loads=shared is not None and shared.load is not None,
            waiting=shared.server.waiting_count if shared else 0,
            not_saved=self._saver.why_not_saved(),
        )


def _answer(waiting: Iterable[Request], outcome: str | BaseException) -> None:
    for request in waiting:
        request.answer(outcome)
