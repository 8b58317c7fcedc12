"""``SnapshotFile``: ``checkpoint_metadata.json``, which shows people all manifests in one file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ckpt_lib.core.logs import failures_logged
from ckpt_lib.errors import StoreError
from ckpt_lib.experiment.index import snapshot
from ckpt_lib.experiment.layout import SNAPSHOT_NAME
from ckpt_lib.experiment.locations import Locations
from ckpt_lib.experiment.view import View


class SnapshotFile:
    """Keeps an experiment's snapshot current. It is derived, so a failure is logged and the next change tries again."""

    def __init__(self, locations: Locations) -> None:
        self._locations = locations
        self._saves_until_due: int | None = None
        self._is_behind = False

    def write(self) -> None:
        """Write it anew, unless the configuration wants none."""
        self._write(self._locations.home.index.view, is_new=True)

    def _write(self, view: Callable[[], View | None], *, is_new: bool) -> None:
        if not self._locations.config.save_metadata:
            return
        with failures_logged(f"updating {SNAPSHOT_NAME}"):
            home = self._locations.home
            if found := view():
                home.store.put(home.key(SNAPSHOT_NAME), self._content(found), durable=False)
                self._is_behind = not is_new

    @contextmanager
    def written_after(self) -> Iterator[None]:
        """Write it anew after a change, also after one that was perhaps made although the store failed."""
        try:
            yield
        except StoreError:
            self.write()
            raise
        self.write()

    def _content(self, view: View) -> bytes:
        manifests = view.usable
        # Writing costs as much as there are checkpoints; spread over so many saves, each save costs the same.
        self._saves_until_due = len(manifests) // 10
        return snapshot(manifests, self._locations.name)

    def note_save(self) -> None:
        """Write it if enough saves have passed since the last time.

        What others did just now may be missing in it, until :meth:`catch_up`.
        """
        self._is_behind = True
        with failures_logged(f"updating {SNAPSHOT_NAME}"):
            if self._saves_until_due is None:
                self._saves_until_due = self._saves_until_first()
            self._saves_until_due -= 1
            if self._saves_until_due < 0:
                self._write(self._locations.home.index.affordable_view, is_new=False)

    def _saves_until_first(self) -> int:
        """Return how many saves of this process may pass until it writes the file: none where there is none yet."""
        home = self._locations.home
        view = home.index.affordable_view()
        return len(view.usable) // 10 if view and home.key(SNAPSHOT_NAME) in view.entries else 0

    def catch_up(self) -> None:
        """Write it if any save has passed since it was written from a new listing."""
        if self._is_behind:
            self.write()
