"""Questions about checkpoints: which one a name means, which is best, and which of them in what order."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ckpt_lib import CheckpointManager
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.core.metadata import CheckpointMetadata
from ckpt_lib.core.monitor import Monitor
from ckpt_lib.core.names import CheckpointId
from ckpt_lib.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    ConfigError,
    CorruptManifestError,
    UnknownMetricError,
)
from ckpt_lib.experiment import copies, deletion, edits
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.query import Catalogue, MonitorRecord
from ckpt_lib.experiment.selectors import Selector
from ckpt_lib.index.places import SORTABLE
from ckpt_lib.index.selection import select
from ckpt_lib.store import Entry, open_store
from tests.experiment.small import save
from tests.helpers import MakeManager

LOSS_RECORD = MonitorRecord(Monitor(metric="val_loss", mode="min"))


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return Experiment(open_store(tmp_path), "e", "e")


def losses(experiment: Experiment, *values: Any) -> list[str]:
    return [save(experiment, n, metrics={"val_loss": value}).checkpoint_id for n, value in enumerate(values)]


# --- names ---


def test_latest_is_the_one_saved_last(experiment: Experiment) -> None:
    """By order of saving, not by epoch, and after a deletion the one before it."""
    ids = [save(experiment, epoch).checkpoint_id for epoch in (1, 9, 2)]
    catalogue = Catalogue(experiment)
    assert catalogue.resolve("latest").checkpoint_id == ids[2]
    deletion.delete_all(experiment, [ids[2]])
    assert catalogue.resolve("latest").checkpoint_id == ids[1]


@pytest.mark.parametrize(("mode", "best"), [("min", 2), ("max", 4)])
def test_best_is_the_best_finite_value(experiment: Experiment, mode: Any, best: int) -> None:
    """NaN, infinities, text and nothing at all do not compete; of equals the earlier is best."""
    values = (math.nan, math.inf, 1.0, None, 7.0, "0", -math.inf, 1.0, 7.0)
    monitor = Monitor(metric="val_loss", mode=mode)
    ids = [
        save(experiment, n, metrics={"val_loss": value}, monitor=monitor).checkpoint_id
        for n, value in enumerate(values)
    ]
    catalogue = Catalogue(experiment)
    assert catalogue.resolve("best").checkpoint_id == catalogue.best_id() == ids[best]


def test_best_is_by_what_the_run_monitored(experiment: Experiment) -> None:
    """What the newest checkpoint records answers, whatever a configuration says."""
    for epoch, accuracy in enumerate((0.1, 0.9, 0.5)):
        metrics = {"acc": accuracy, "val_loss": accuracy}
        save(experiment, epoch, metrics=metrics, monitor=Monitor(metric="acc", mode="max"))
    assert Catalogue(experiment).resolve("best").epoch == 1
    assert Catalogue(experiment, LOSS_RECORD).resolve("best").epoch == 1


def test_a_tag_is_the_newest_that_carries_it(experiment: Experiment) -> None:
    """In whatever spelling of its characters."""
    save(experiment, 1, tags=("caf\u00e9", "a"))
    save(experiment, 2, tags=("caf\u00e9",))
    catalogue = Catalogue(experiment)
    assert catalogue.resolve("caf\u00e9").epoch == catalogue.resolve("cafe\u0301").epoch == 2
    assert catalogue.resolve("a").epoch == 1


def test_keywords_and_ids_are_no_tags(experiment: Experiment) -> None:
    """No manifest can hold a tag called ``latest``, or one that is an id, which would redirect a question."""
    first = save(experiment, 1)
    for tag in ("best", "latest", first.checkpoint_id):
        with pytest.raises(ValueError, match="cannot be a tag"):
            save(experiment, 2, tags=(tag,))
    save(experiment, 3, metrics={"val_loss": 1.0})
    save(experiment, 5)
    catalogue = Catalogue(experiment, LOSS_RECORD)
    assert catalogue.resolve("latest").epoch == 5
    assert catalogue.resolve("best").epoch == 3
    assert catalogue.resolve(first.checkpoint_id).epoch == 1


@pytest.mark.parametrize(
    ("name", "epoch"),
    [("latest~0", 5), ("latest~1", 4), ("latest~4", 1), ("best", 3), ("best~1", 2), ("best~2", 4), ("@odd", 5)],
)
def test_how_many_come_before(experiment: Experiment, name: str, epoch: int) -> None:
    """Before the latest and before a tag in the order of saving, and behind the best in that of the metric."""
    for number, loss in enumerate((5.0, 2.0, 1.0, 3.0, 4.0), start=1):
        tags = ("odd",) if number % 2 else ()
        save(experiment, number, metrics={"val_loss": loss}, tags=tags, monitor=Monitor(metric="val_loss", mode="min"))
    catalogue = Catalogue(experiment)
    assert catalogue.resolve(name).epoch == epoch
    assert [catalogue.resolve(f"odd~{back}").epoch for back in range(3)] == [5, 3, 1]
    assert catalogue.resolve(f"{catalogue.resolve('best').checkpoint_id}~2").epoch == 1


@pytest.mark.parametrize("name", ["latest~2", "best~1", "epoch_1~1", "odd~1", "latest~-1", "latest~", "~", "@latest"])
def test_what_no_checkpoint_is_so_far_before(experiment: Experiment, name: str) -> None:
    """There are two, and one of them has a metric and the tag: nothing else is taken instead."""
    save(experiment, 1, metrics={"val_loss": 1.0}, tags=("odd",))
    save(experiment, 2)
    with pytest.raises(CheckpointNotFoundError):
        Catalogue(experiment, LOSS_RECORD).resolve(name)


@pytest.mark.parametrize(
    "name", ["epoch_12", "checkpoint_epoch_12", "epoch_0012_step_100", "checkpoint_epoch_0012_step_000100"]
)
def test_an_id_may_be_short_if_it_is_the_only_one(experiment: Experiment, name: str) -> None:
    """Numbers are numbers: one digit more is another epoch, and no beginning of it."""
    wanted = save(experiment, 12).checkpoint_id
    for epoch in (1, 120, 12_000):
        save(experiment, epoch)
    catalogue = Catalogue(experiment)
    assert catalogue.resolve(name).checkpoint_id == wanted
    assert catalogue.resolve(wanted[: len(wanted) - 3]).checkpoint_id == wanted


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 9))
def test_the_short_forms_of_any_id_stand_for_it(epoch: int, step: int, suffix: int) -> None:
    """However many digits its numbers have, and for no id of the next epoch or step."""
    moment = datetime(2026, 12, 1, tzinfo=UTC)
    ids = [CheckpointId(*at, moment, suffix) for at in ((epoch, step), (epoch + 1, step), (epoch, step + 1))]
    records = [Manifest.model_construct(checkpoint_id=str(item)) for item in ids]
    assert Selector.parse(f"epoch_{epoch}").matching_ids(records) == [records[0], records[2]]
    for short in (f"epoch_{epoch}_step_{step}", f"epoch_{epoch}_step_{step}_20261201"):
        assert Selector.parse(short).matching_ids(records) == [records[0]]


def test_a_short_id_of_several_is_refused(experiment: Experiment) -> None:
    """With their ids, and unless it is a tag, which says more."""
    ids = [save(experiment, 3).checkpoint_id for _ in range(2)]
    catalogue = Catalogue(experiment)
    with pytest.raises(CheckpointNotFoundError, match="short for 2 checkpoints") as raised:
        catalogue.resolve("epoch_3")
    assert all(checkpoint_id in str(raised.value) for checkpoint_id in ids)
    tagged = save(experiment, 4, tags=("epoch_3",)).checkpoint_id
    assert catalogue.resolve("epoch_3").checkpoint_id == tagged


@pytest.mark.parametrize(
    "name", ["", "nothing", "Latest", "../e", "\ud800", "x" * 10_000, "checkpoint_epoch_0007", "~1", "@"]
)
def test_an_unknown_name_is_not_found(experiment: Experiment, name: str) -> None:
    """Whatever it is, the error is printable and short."""
    save(experiment)
    with pytest.raises(CheckpointNotFoundError) as raised:
        Catalogue(experiment).resolve(name)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 500


def test_an_empty_experiment_has_neither_best_nor_latest(experiment: Experiment) -> None:
    """Asked for by name it is an error, asked whether there is one it is ``None``."""
    catalogue = Catalogue(experiment)
    assert (catalogue.best_id(), catalogue.describe_all()) == (None, [])
    for name in ("best", "latest"):
        with pytest.raises(CheckpointNotFoundError):
            catalogue.resolve(name)


def test_no_best_is_explained(experiment: Experiment) -> None:
    """By the metric that has no finite value."""
    losses(experiment, math.nan)
    with pytest.raises(CheckpointNotFoundError, match="val_loss"):
        Catalogue(experiment, LOSS_RECORD).resolve("best")


def test_a_near_miss_is_suggested(experiment: Experiment) -> None:
    """A typo in a tag; the error says which experiment of which store was asked."""
    save(experiment, tags=("release-candidate",))
    with pytest.raises(CheckpointNotFoundError, match="release-candidate") as raised:
        Catalogue(experiment).resolve("release-candidat")
    assert raised.value.path == experiment.location()


@pytest.mark.parametrize("name", [None, 3, b"latest", ["latest"]])
def test_a_name_is_text(experiment: Experiment, name: Any) -> None:
    """Anything else is a mistake in the call."""
    with pytest.raises(ConfigError):
        Catalogue(experiment).resolve(name)


def test_a_damaged_manifest_is_no_latest_but_answers_to_its_id(experiment: Experiment, tmp_path: Path) -> None:
    """With its error, not with "not found"; keywords go to the next that can be read."""
    first, second = save(experiment, 1), save(experiment, 2)
    (tmp_path / "e" / f"{second.checkpoint_id}.json").write_bytes(b"torn")
    catalogue = Catalogue(experiment)
    assert catalogue.resolve("latest") == first
    with pytest.raises(CorruptManifestError):
        catalogue.resolve(second.checkpoint_id)


def test_one_in_quarantine_is_passed_over(experiment: Experiment) -> None:
    """By keywords, tags and listings; its id says where it is."""
    first, second = (save(experiment, n, tags=("a",), metrics={"val_loss": -n}) for n in (1, 2))
    edits.quarantine(experiment, experiment.read(second.checkpoint_id), {"message": "damaged"})
    catalogue = Catalogue(experiment, LOSS_RECORD)
    assert [catalogue.resolve(name) for name in ("latest", "best", "a")] == [first] * 3
    assert catalogue.ids() == [first.checkpoint_id]
    with pytest.raises(CheckpointNotFoundError, match="in quarantine"):
        catalogue.resolve(second.checkpoint_id)


def test_that_there_is_none_is_looked_at_twice(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    """One listing may miss a checkpoint that took the place of another meanwhile."""
    saved, listed = save(experiment), experiment.store.list
    missed = iter([True])

    def list_late(path: str) -> list[Entry]:
        return [] if next(missed, False) else list(listed(path))

    monkeypatch.setattr(experiment.store, "list", list_late)
    assert Catalogue(experiment).manifests() == [saved]


def test_a_lost_one_is_told_where_it_may_be(experiment: Experiment, tmp_path: Path) -> None:
    """In a backup, or in a payload that lost its manifest."""
    backups = Experiment(experiment.store, "e/backups", "e")
    saved, other = save(experiment, 1), save(experiment, 2)
    copies.copy(experiment, saved, backups)
    for item in (saved, other):
        (tmp_path / "e" / f"{item.checkpoint_id}.json").unlink()
    catalogue = Catalogue(experiment, backups=backups)
    with pytest.raises(CheckpointNotFoundError, match="ckpt import"):
        catalogue.resolve(other.checkpoint_id)
    with pytest.raises(CheckpointNotFoundError, match="ckpt restore"):
        catalogue.resolve(saved.checkpoint_id)


def test_one_is_marked_best_and_one_latest(experiment: Experiment) -> None:
    """Never two, and they are the ones that the names mean."""
    losses(experiment, 3.0, 1.0, 2.0)
    catalogue = Catalogue(experiment, LOSS_RECORD)
    described = catalogue.describe_all()
    assert [(item.is_best, item.is_latest) for item in described] == [(False, False), (True, False), (False, True)]
    assert [catalogue.describe(catalogue.resolve(item.checkpoint_id)) for item in described] == described


# --- selecting ---

values = st.one_of(st.none(), st.floats(), st.integers(-5, 5), st.just("text"))


@st.composite
def checkpoints(draw: st.DrawFn) -> list[CheckpointMetadata]:
    found = []
    for sequence in range(1, draw(st.integers(0, 8)) + 1):
        epoch, step = draw(st.integers(0, 5)), draw(st.integers(0, 5))
        moment = datetime(2024, 1, 1, tzinfo=UTC) + timedelta(seconds=draw(st.integers(0, 100)))
        found.append(
            CheckpointMetadata(
                checkpoint_id=str(CheckpointId(epoch, step, moment, sequence)),
                timestamp=moment,
                epoch=epoch,
                step=step,
                model_name="Net",
                experiment_name="e",
                metrics=draw(st.dictionaries(st.sampled_from(["a", "b"]), values)),
                tags=draw(st.lists(st.sampled_from(["x", "y", "Stra\u00dfe"]), unique=True).map(tuple)),
                description=draw(st.sampled_from(["", "Good one", "STRASSE", "cafe\u0301"])),
                sequence=sequence,
                file_size=draw(st.integers(0, 3)),
                uncompressed_size=draw(st.integers(0, 3)),
                checksum="0" * 64,
            )
        )
    return found


@given(
    checkpoints(),
    st.lists(st.sampled_from(["x", "y"]), unique=True),
    st.sampled_from(["", "good", "strasse", "STRA\u00dfE", "caf\u00e9", "epoch_0003", "nowhere"]),
    st.tuples(st.none() | st.integers(0, 5), st.none() | st.integers(0, 5)),
    st.none() | st.integers(0, 9),
)
def test_a_selection_is_all_that_fits(
    known: list[CheckpointMetadata], tags: list[str], search: str, epochs: tuple[Any, Any], limit: int | None
) -> None:
    """All tags, the text anywhere in whatever case, the epochs inclusive; in order, cut at the limit."""
    low, high = epochs
    found = select(known, tags=tags, search=search, min_epoch=low, max_epoch=high, limit=limit)
    folds = {"strasse": ["strasse", "straße"], "straße": ["strasse", "straße"], "café": ["café", "cafe\u0301"]}
    texts = folds.get(search.lower(), [search.lower()])

    def fits(item: CheckpointMetadata) -> bool:
        content = [item.checkpoint_id, item.description.lower(), *(tag.lower() for tag in item.tags)]
        return (
            set(tags) <= set(item.tags)
            and any(text in part for text in texts for part in content)
            and (low is None or item.epoch >= low)
            and (high is None or item.epoch <= high)
        )

    assert found == [item for item in known if fits(item)][:limit]


@given(checkpoints(), st.sampled_from([*SORTABLE, "a"]), st.booleans())
def test_sorting_keeps_all_and_puts_what_cannot_be_compared_last(
    known: list[CheckpointMetadata], by: str, descending: bool
) -> None:
    """NaN, text and missing values never get between the numbers, either way round."""
    if by == "a" and known and not any("a" in item.metrics for item in known):
        with pytest.raises(UnknownMetricError):
            select(known, sort_by=by)
        return
    found = select(known, sort_by=by, descending=descending)
    assert sorted(item.sequence for item in found) == [item.sequence for item in known]
    keys: list[Any] = [item.metrics.get("a") if by == "a" else getattr(item, by) for item in found]
    numbers = [key for key in keys if by != "a" or (isinstance(key, int | float) and math.isfinite(key))]
    assert keys[: len(numbers)] == numbers
    assert numbers == sorted(numbers, reverse=descending)


@pytest.mark.parametrize(
    "options",
    [
        {"limit": -1},
        {"limit": 1.5},
        {"limit": True},
        {"min_epoch": -1},
        {"max_epoch": "3"},
        {"search": None},
        {"search": 3},
        {"sort_by": 3},
        {"sort_by": None},
    ],
)
def test_a_wrong_option_is_refused(options: dict[str, Any]) -> None:
    """A negative limit would cut from the end, silently."""
    with pytest.raises(ConfigError):
        select([], **options)


def test_an_unknown_metric_names_those_there_are(experiment: Experiment) -> None:
    """A misspelt one must not look like a sorted list."""
    losses(experiment, 1.0)
    with pytest.raises(UnknownMetricError, match="val_loss"):
        select(Catalogue(experiment).describe_all(), sort_by="val_los")
    assert select([], sort_by="anything") == []


def test_a_path_is_told_from_an_id(manager: CheckpointManager) -> None:
    """A path in place of an id is called a path."""
    with pytest.raises(CheckpointNotFoundError, match=r"looks like a path.*ckpt import"):
        manager.get_checkpoint("exports/model.pt")


@pytest.mark.parametrize(
    ("ask", "meant"),
    [
        (lambda manager: manager.get_checkpoint("latst"), "latest"),
        (lambda manager: manager.get_checkpoint("bset"), "best"),
        (lambda manager: manager.get_checkpoint("basline"), "baseline"),
        (lambda manager: manager.get_best_checkpoint("val_los"), "val_loss"),
        (lambda manager: manager.set_monitor("val_los", "min"), "val_loss"),
        (lambda manager: manager.compare_checkpoints(["latest", "best"], metrics=["val_los"]), "val_loss"),
    ],
)
def test_a_misspelt_name_is_told_which_is_meant(make_manager: MakeManager, ask: Any, meant: str) -> None:
    """Keywords, tags and metrics: the hint names what comes close."""
    manager = make_manager()
    for epoch in (1, 2):
        manager.save_checkpoint(model=nn.Linear(1, 1), epoch=epoch, metrics={"val_loss": 1.0}, tags=["baseline"])
    with pytest.raises(CheckpointError, match=f"Did you mean '{meant}'"):
        ask(manager)


def test_a_misspelt_id_is_told_which_is_meant(make_manager: MakeManager) -> None:
    """An id that no checkpoint has gets the nearest that one has, and stays in the error."""
    manager = make_manager()
    manager.save_checkpoint(model=nn.Linear(1, 1), epoch=1)
    (saved,) = manager.checkpoint_ids()
    with pytest.raises(CheckpointNotFoundError, match=f"Did you mean '{saved}'") as caught:
        manager.get_checkpoint(saved.replace("epoch_0001", "epoch_0002"))
    assert caught.value.checkpoint_id == saved.replace("epoch_0001", "epoch_0002")


@pytest.mark.parametrize("count", [-(10**5000), 10**30, 10**5000], ids=["negative", "large", "huge"])
def test_counts_beyond_range(make_manager: MakeManager, count: int) -> None:
    """A number that Python does not even write is an error of ours, or as good as no limit."""
    manager = make_manager()
    manager.save_checkpoint(model=nn.Linear(1, 1), epoch=1)
    with pytest.raises(ConfigError, match="epoch must be a whole number from 0 to 999,999,999,999,999,999"):
        manager.save_checkpoint(model=nn.Linear(1, 1), epoch=count)
    if count < 0:
        with pytest.raises(ConfigError, match="limit must be a whole number"):
            manager.list_checkpoints(limit=count)
    else:
        assert len(manager.list_checkpoints(limit=count)) == 1


@pytest.mark.parametrize("number", [np.int64(3), np.uint8(3), torch.tensor(3), torch.tensor([3])], ids=repr)
def test_whole_numbers_of_libraries_count(make_manager: MakeManager, number: Any) -> None:
    """What Python takes as an index is an epoch and a step, as a plain number."""
    manager = make_manager()
    saved = manager.get_checkpoint(manager.save_checkpoint(model=nn.Linear(1, 1), epoch=number, step=number) or "")
    assert (type(saved.epoch), saved.epoch, saved.step) == (int, 3, 3)
    assert manager.load_checkpoint(saved.checkpoint_id)["epoch"] == 3
    assert len(manager.list_checkpoints(min_epoch=number)) == 1


NO_COUNTS = [True, np.True_, torch.tensor(True), torch.tensor([1, 2]), torch.empty((), device="meta"), 3.0, "3", None]


@pytest.mark.parametrize("value", [*NO_COUNTS, np.float64(3), np.int64(-3)], ids=repr)
def test_what_is_no_whole_number_is_no_epoch(make_manager: MakeManager, value: Any) -> None:
    """Yes and no are no epochs, nor is what would have to be rounded or read."""
    with pytest.raises(ConfigError, match="epoch must be a whole number"):
        make_manager().save_checkpoint(model=nn.Linear(1, 1), epoch=value)
