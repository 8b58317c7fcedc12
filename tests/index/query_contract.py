"""What a database must answer, whichever it is: what selecting in memory answers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckpt_lib.core.manifest import Manifest
from ckpt_lib.core.metadata import CheckpointMetadata
from ckpt_lib.errors import CheckpointNotFoundError, UnknownMetricError
from ckpt_lib.index.database import IndexDatabase
from ckpt_lib.index.listing import FolderKey
from ckpt_lib.index.places import Place
from ckpt_lib.index.selection import Selection, select_from
from tests.index.examples import NAMES, SELECTIONS, STORE, described, experiments, note

same_database = settings(
    max_examples=60,  # a profile that asks for more would ask three databases
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
)
"""Each example fills the database anew, and each subclass has its own."""


class QueryContract:
    """Subclasses have a fixture ``database``: an :class:`IndexDatabase` that is used for nothing else."""

    @pytest.fixture
    def database(self) -> IndexDatabase:
        raise NotImplementedError

    @same_database
    @given(experiments(), SELECTIONS)
    def test_it_answers_as_a_selection_in_memory_does(
        self, database: IndexDatabase, stored: dict[str, list[Manifest]], selection: Selection
    ) -> None:
        """The same checkpoints in the same order, or the same error."""
        self._fill(database, stored)
        assert _outcome(lambda: database.find(STORE, selection)) == _outcome(
            lambda: select_from(described(stored), selection)
        )

    @same_database
    @given(experiments(), SELECTIONS, st.integers(1, 3))
    def test_pages_add_up_to_the_whole(
        self, database: IndexDatabase, stored: dict[str, list[Manifest]], selection: Selection, size: int
    ) -> None:
        """Each begins after the last of the one before, also among equals."""
        self._fill(database, stored)
        asked = vars(selection) | {"limit": None, "sort_by": "sequence", "where": ()}
        for sort_by in ("sequence", "epoch", *NAMES[:1]):
            asked["sort_by"] = sort_by
            try:
                whole = database.find(STORE, Selection(**asked))
            except UnknownMetricError:
                continue
            pages: list[CheckpointMetadata] = []
            after = None
            while page := database.find(STORE, Selection(**asked | {"limit": size, "after": after})):
                pages += page
                after = f"{page[-1].experiment_name}/{page[-1].checkpoint_id}"
            assert pages == whole

    @same_database
    @given(experiments(), SELECTIONS, st.integers(0, 20))
    def test_a_place_outlasts_its_checkpoint(
        self, database: IndexDatabase, stored: dict[str, list[Manifest]], selection: Selection, at: int
    ) -> None:
        """A page goes on behind the place of a checkpoint that is gone, in whatever order."""
        for sort_by in ("sequence", "epoch", "timestamp", "checkpoint_id", *NAMES[:1]):
            self._fill(database, stored)
            asked = vars(selection) | {"limit": None, "sort_by": sort_by, "where": ()}
            try:
                whole = database.find(STORE, Selection(**asked))
            except UnknownMetricError:
                continue
            if not whole:
                return
            last = whole[at % len(whole)]
            rest = {
                name: [
                    item for item in items if (name, item.checkpoint_id) != (last.experiment_name, last.checkpoint_id)
                ]
                for name, items in stored.items()
            }
            self._fill(database, rest)
            place = Place.of(last, sort_by, in_all=True)
            try:
                following = database.find(STORE, Selection(**asked | {"after": place}))
            except UnknownMetricError:  # the only one that had recorded it is gone
                continue
            names = [(item.experiment_name, item.checkpoint_id) for item in following or []]
            expected = whole[whole.index(last) + 1 :]
            assert names == [(item.experiment_name, item.checkpoint_id) for item in expected]

    @same_database
    @given(experiments(), SELECTIONS, st.integers(0, 20), st.integers(0, 20))
    def test_a_place_outlasts_its_value(
        self, database: IndexDatabase, stored: dict[str, list[Manifest]], selection: Selection, at: int, other: int
    ) -> None:
        """A page goes on behind the place that a checkpoint had: by its new one, it would skip what lies between."""
        self._fill(database, stored)
        for sort_by in ("epoch", "file_size", *NAMES[:1]):
            asked = vars(selection) | {"limit": None, "sort_by": sort_by, "where": ()}
            try:
                whole = database.find(STORE, Selection(**asked))
            except UnknownMetricError:
                continue
            if not whole:
                return
            before = Place.of(whole[other % len(whole)], sort_by, in_all=True)
            place = replace(Place.of(whole[at % len(whole)], sort_by, in_all=True), value=before.value)
            following = database.find(STORE, Selection(**asked | {"after": place}))
            expected = [item for item in whole if place.precedes(item, descending=selection.descending)]
            if place != Place.of(whole[at % len(whole)], sort_by, in_all=True):
                assert following == expected
            assert following == select_from(described(stored), Selection(**asked | {"after": place}))

    def test_a_page_after_what_is_not_there_is_refused(self, database: IndexDatabase) -> None:
        """The page would begin anywhere."""
        with pytest.raises(CheckpointNotFoundError, match="cannot begin after"):
            database.find(STORE, Selection(after="a/checkpoint_epoch_0001_step_000000_20260101_000001"))

    @same_database
    @given(experiments(), experiments())
    def test_it_knows_what_was_listed_last(
        self, database: IndexDatabase, first: dict[str, list[Manifest]], later: dict[str, list[Manifest]]
    ) -> None:
        """Records, overviews and versions of folders, and nothing of what is gone."""
        self._fill(database, first)
        self._fill(database, later)
        for name in {*first, *later}:
            known = database.known(FolderKey(STORE, name))
            assert {key: item.record for key, item in known.items()} == {
                item.checkpoint_id: item for item in later.get(name, [])
            }
        assert {name: folder.overview.total_checkpoints for name, folder in database.folders(STORE).items()} == {
            name: len(found) for name, found in sorted(later.items())
        }

    def _fill(self, database: IndexDatabase, stored: dict[str, list[Manifest]]) -> None:
        database.forget(STORE, [name for name in database.folders(STORE) if name not in stored])
        for name, manifests in stored.items():
            assert note(database, name, manifests)


def _outcome(ask: object) -> object:
    try:
        return ask()  # type: ignore[operator]
    except UnknownMetricError as error:
        return str(error)
