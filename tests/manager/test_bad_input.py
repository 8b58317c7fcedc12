"""Bad input and hostile surroundings: one typed error each, nothing written, nothing lost, nothing run."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import random
import shutil
import stat
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xxhash
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager, list_experiments, open_store
from ckpt_lib.core.manifest import Manifest, Record
from ckpt_lib.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    ConfigError,
    CorruptCheckpointError,
    IntegrityError,
    InvalidMetricError,
    InvalidNameError,
    NotACheckpointError,
    NotAStoreError,
    NoValidCheckpointError,
    StoreError,
    UnknownMetricError,
    UnsafePayloadError,
    UnsupportedFormatError,
    UnsupportedSchemaError,
    UnsupportedStateError,
)
from ckpt_lib.store.local.reader import LocalReader
from tests.helpers import (
    MakeManager,
    build,
    contents,
    experiment_folder,
    ids,
    manifest_path,
    payload_path,
    run_python,
    save,
    snapshot,
    state_of,
)

HOSTILE_TEXTS = {
    "empty": "",
    "dot": ".",
    "dot-dot": "..",
    "parent": "../escape",
    "absolute": "/etc/passwd",
    "windows path": "..\\escape",
    "drive": "C:escape",
    "nul": "a\0b",
    "newline": "a\nb",
    "trailing newline": "ab\n",
    "bidi": "abc\u202edef",
    "zero width": "a\u200bb",
    "surrogate": "a\udce9b",
    "blank": " ",
    "padded": " a",
    "long": "x" * 300,
}
HOSTILE_NAMES = HOSTILE_TEXTS | {
    "device": "CON",
    "device with suffix": "nul.txt",
    "trailing dot": "run.",
    "hidden": ".run",
    "option": "-rf",
    "emoji": "run\U0001f680",
    "fullwidth": "\uff52un",
    "blank at the end": "my run ",
    "slash": "a/b",
}
HOSTILE_TAGS = {
    name: text
    for name, text in HOSTILE_TEXTS.items()
    if name not in {"dot", "dot-dot", "parent", "absolute", "windows path", "drive"}
}


@pytest.fixture
def filled(make_manager: MakeManager) -> Iterator[CheckpointManager]:
    """A manager of an experiment with two checkpoints, of which the test must change not a byte."""
    manager = make_manager()
    for epoch in (1, 2):
        save(manager, epoch, tags=["t"])
    before = contents(Path(manager.config.checkpoint_dir))
    yield manager
    assert contents(Path(manager.config.checkpoint_dir)) == before
    assert all(manager.validate_all())


# --- names ---


@pytest.mark.parametrize("name", HOSTILE_NAMES.values(), ids=HOSTILE_NAMES)
def test_hostile_experiment_names(tmp_path: Path, name: str) -> None:
    """No name that could leave its folder, or that some system cannot hold, is accepted; nothing is created."""
    with pytest.raises(InvalidNameError):
        CheckpointManager(CheckpointConfig(checkpoint_dir=str(tmp_path / "s")), name)
    assert snapshot(tmp_path) == {}


@pytest.mark.parametrize("name", [None, 5, b"run", ["run"], True])
def test_experiment_names_of_another_type(tmp_path: Path, name: Any) -> None:
    """A name that is no text is refused alike."""
    with pytest.raises(InvalidNameError):
        CheckpointManager(CheckpointConfig(checkpoint_dir=str(tmp_path / "s")), name)


@pytest.mark.parametrize("tag", HOSTILE_TAGS.values(), ids=HOSTILE_TAGS)
def test_hostile_tags(filled: CheckpointManager, tag: str) -> None:
    """Tags that are not one line of visible text are refused when saving, editing and searching."""
    for call in (
        lambda: save(filled, 3, tags=["fine", tag]),
        lambda: filled.edit_checkpoint("latest", add_tags=[tag]),
        lambda: filled.edit_checkpoint("latest", remove_tags=[tag]),
        lambda: filled.list_checkpoints(tags=[tag]),
    ):
        with pytest.raises(InvalidNameError):
            call()


def test_tags_may_be_emoji(manager: CheckpointManager) -> None:
    """A tag never becomes a file name: nearly any visible text will do."""
    saved = save(manager, 1, tags=["\U0001f680 launch", "..looks-like-a-path"])
    assert manager.load_checkpoint("..looks-like-a-path")["checkpoint_id"] == saved


@pytest.mark.parametrize("tags", ["prod", 5, None, [None], [5], [["a"]], {"a": 1}.items()])
def test_tags_of_another_type(filled: CheckpointManager, tags: Any) -> None:
    """A single text is not taken for a list of letters, nor anything else for a list of tags."""
    for call in (lambda: save(filled, 3, tags=tags), lambda: filled.list_checkpoints(tags=tags)):
        with pytest.raises(InvalidNameError):
            call()


@pytest.mark.parametrize("text", ["a\0b", "a\x1b[31mred", "a\u202eb", "x" * 10_001, None, 5, b"d", "a\udce9"])
def test_hostile_descriptions(filled: CheckpointManager, text: Any) -> None:
    """A description that could steer a terminal, or is no text, is refused when saving; so are edits to it."""
    with pytest.raises(InvalidNameError):
        save(filled, 3, description=text)
    if text is not None:
        with pytest.raises(InvalidNameError):
            filled.edit_checkpoint("latest", description=text)


MISSING_ID = "checkpoint_epoch_0009_step_000000_20231201_143022"


@pytest.mark.parametrize(
    "name", [*HOSTILE_TEXTS.values(), MISSING_ID, f"../run/{MISSING_ID}", f"{MISSING_ID}\n", f"{MISSING_ID}.pt", "tt"]
)
def test_names_that_no_checkpoint_has(filled: CheckpointManager, tmp_path: Path, name: str) -> None:
    """Every call that takes an id refuses a wrong or hostile one alike, and reads no file that it names."""
    calls: list[Callable[[], object]] = [
        lambda: filled.load_checkpoint(name),
        lambda: filled.validate_checkpoint(name),
        lambda: filled.validate_backup(name),
        lambda: filled.get_checkpoint(name),
        lambda: filled.compare_checkpoints(["latest", name]),
        lambda: filled.edit_checkpoint(name, add_tags=["x"]),
        lambda: filled.pin_checkpoint(name),
        lambda: filled.backup_checkpoint(name),
        lambda: filled.restore_checkpoint(name),
        lambda: filled.export_checkpoint(name, tmp_path / "exports"),
        lambda: filled.delete_checkpoint(name),
        lambda: filled.payload_version(name),
    ]
    for call in calls:
        with pytest.raises(CheckpointNotFoundError):
            call()
    assert not (tmp_path / "exports").exists()


@pytest.mark.parametrize("name", [None, 5, b"latest", ["latest"], True, 1.5])
def test_ids_of_another_type(filled: CheckpointManager, name: Any) -> None:
    """An id that is no text is one typed error, everywhere."""
    for call in (
        filled.load_checkpoint,
        filled.validate_checkpoint,
        filled.validate_backup,
        filled.get_checkpoint,
        filled.pin_checkpoint,
        filled.backup_checkpoint,
        filled.restore_checkpoint,
        filled.delete_checkpoint,
    ):
        with pytest.raises(ConfigError):
            call(name)


def test_a_backup_id_cannot_lead_out_of_the_folder(manager: CheckpointManager) -> None:
    """A path in place of an id is not followed, though a file is there."""
    saved = save(manager, 1)
    with pytest.raises(CheckpointNotFoundError):
        manager.validate_backup(f"../{saved}")


# --- types ---


class _Stateless:
    """Not a model."""


@pytest.mark.parametrize(
    "options",
    [
        {"epoch": "1"},
        {"epoch": -1},
        {"epoch": True},
        {"epoch": 1.0},
        {"epoch": None},
        {"epoch": 10**18},
        {"step": "1"},
        {"step": -1},
        {"step": False},
        {"step": None},
        {"model": None},
        {"model": _Stateless()},
        {"model": {"weight": 1}},
        {"optimizer": _Stateless()},
        {"scheduler": "cosine"},
        {"config": [1]},
        {"config": "lr=1"},
        {"config": {"lr": object()}},
        {"config": {"model": object()}},
        {"config": {"path": "caf\udce9"}},
        {"extra_state": 5},
        {"extra_state": [("a", 1)]},
        {"idempotency_key": 5},
        {"idempotency_key": "caf\udce9"},
        {"idempotency_key": "a\nb"},
    ],
    ids=lambda options: ascii(options)[:40],
)
@pytest.mark.parametrize("interval", [1, 50])
def test_wrong_types_of_a_save(make_manager: MakeManager, options: dict[str, Any], interval: int) -> None:
    """Each wrong argument is one ConfigError, at once: also in an epoch that the policy would not save."""
    manager = make_manager(save_interval=interval)
    with pytest.raises(ConfigError):
        manager.save_checkpoint(**{"model": nn.Linear(2, 1), "epoch": 1, **options})
    assert not Path(manager.config.checkpoint_dir).exists()


def test_deep_configurations_are_refused_at_the_door(filled: CheckpointManager) -> None:
    """A configuration deeper than a manifest can hold is refused; one of 50 levels is stored."""

    def nested(levels: int) -> dict[str, Any]:
        value: dict[str, Any] = {"end": 1}
        for _ in range(levels):
            value = {"a": value}
        return value

    for levels in (150, 300, 5_000):
        with pytest.raises(ConfigError):
            save(filled, 3, config=nested(levels))


@pytest.mark.parametrize("config", [5, "checkpoints", {"checkpoint_dir": "x"}, CheckpointConfig])
def test_a_manager_wants_a_config(config: Any) -> None:
    """Anything but a CheckpointConfig is refused by name."""
    with pytest.raises(ConfigError, match="CheckpointConfig"):
        CheckpointManager(config, "run")


@pytest.mark.parametrize("policy", ["newest", 5, object()])
def test_policies_of_another_type(filled: CheckpointManager, policy: Any) -> None:
    """What is no policy is refused when it is given, and not when it is first needed."""
    with pytest.raises(ConfigError, match="policy"):
        CheckpointManager(filled.config, "run", save_policy=policy)
    with pytest.raises(ConfigError, match="policy"):
        CheckpointManager(filled.config, "run", retention_policy=policy)
    with pytest.raises(ConfigError, match="policy"):
        filled.cleanup_checkpoints(policy=policy)


@pytest.mark.parametrize(
    "query", [{"limit": -1}, {"limit": "5"}, {"min_epoch": "1"}, {"max_epoch": 1.5}, {"search": 5}, {"sort_by": 5}]
)
def test_queries_of_another_type(filled: CheckpointManager, query: dict[str, Any]) -> None:
    """A wrong bound or order is refused, and does not quietly give another list."""
    with pytest.raises(ConfigError):
        filled.list_checkpoints(**query)


# --- metrics ---


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), None, "diverged", "NaN"], ids=repr)
@pytest.mark.parametrize("mode", ["min", "max"])
def test_values_that_do_not_compare_are_stored_and_never_best(make_manager: MakeManager, value: Any, mode: str) -> None:
    """They come back as they were, in metadata and payload, and lose against any number."""
    manager = make_manager(monitor_mode=mode)
    saved = [save(manager, 1, value), save(manager, 2, 1e300), save(manager, 3, -1e300), save(manager, 4, value)]
    expected = float("nan") if value == "NaN" else value
    for found in (
        manager.get_checkpoint(saved[0]).metrics["val_loss"],
        manager.load_checkpoint(saved[3])["metrics"]["val_loss"],
    ):
        assert repr(found) == repr(expected)
    best = manager.get_best_checkpoint()
    assert best is not None
    assert best.checkpoint_id == saved[2 if mode == "min" else 1]
    assert manager.get_checkpoint_summary()["statistics"]["val_loss"]["not_comparable"] == 2


@pytest.mark.parametrize(
    "value",
    [
        [0.1],
        (0.1,),
        {"a": 1},
        torch.ones(2),
        torch.ones(2, 2),
        np.ones(3),
        object(),
        1 + 2j,
        b"0.1",
        10**400,
        10**5000,
        "a\nb",
        "\x1b[31m",
        torch.ones((), device="meta"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_metrics_that_are_no_number_are_refused(filled: CheckpointManager, value: Any) -> None:
    """Lists, vectors, objects and numbers beyond any float are refused by name."""
    with pytest.raises(InvalidMetricError, match="odd_one"):
        save(filled, 3, metrics={"val_loss": 1.0, "odd_one": value})


@pytest.mark.parametrize(
    "metrics", [[("val_loss", 1)], 5, "val_loss", {5: 1.0}, {"": 1.0}, {"a\nb": 1.0}, {"x" * 101: 1}]
)
def test_metrics_that_are_no_mapping_of_names(filled: CheckpointManager, metrics: Any) -> None:
    """Neither other containers nor names that cannot be printed are taken."""
    with pytest.raises(InvalidMetricError):
        save(filled, 3, metrics=metrics)


def test_numbers_of_libraries_become_plain(manager: CheckpointManager) -> None:
    """0-d tensors and NumPy scalars are stored as the numbers they hold."""
    given = {"t": torch.tensor(0.5), "n": np.float32(0.25), "i": np.int64(3), "b": True, "h": torch.tensor(7)}
    saved = save(manager, 1, metrics=given)
    found = manager.get_checkpoint(saved).metrics
    assert found == {"t": 0.5, "n": 0.25, "i": 3, "b": 1, "h": 7}
    assert {type(value) for value in found.values()} == {int, float}


def test_unknown_metrics(filled: CheckpointManager) -> None:
    """A metric nobody recorded is an error that lists those there are, in each call that takes one."""
    for call in (
        lambda: filled.get_best_checkpoint("val_los", "min"),
        lambda: filled.list_checkpoints(sort_by="val_los"),
        lambda: filled.compare_checkpoints(["latest", "best"], metrics=["val_los"]),
    ):
        with pytest.raises(UnknownMetricError, match="val_loss"):
            call()


# --- state ---


@pytest.mark.parametrize(
    "make",
    [
        lambda: {"extra_state": {"callback": lambda: None}},
        lambda: {"extra_state": {"deep": [{"in": (object(),)}]}},
        lambda: {"extra_state": {"array": np.array(["x"])}},
        lambda: {"extra_state": {"path": Path("x")}},
        lambda: {"scheduler": _SchedulerWithObject()},
        lambda: {"extra_state": _endless()},
    ],
)
def test_state_that_plain_torch_could_not_read_is_refused(
    filled: CheckpointManager, make: Callable[[], dict[str, Any]]
) -> None:
    """A checkpoint that only our code, or only a trusting reader, could load is never written."""
    with pytest.raises(UnsupportedStateError) as caught:
        save(filled, 3, **make())
    assert isinstance(caught.value, TypeError)


class _SchedulerWithObject:
    """A scheduler that keeps an object of its own class in its state."""

    def state_dict(self) -> dict[str, Any]:
        return {"last_epoch": 1, "anneal": self}

    def load_state_dict(self, state: Any) -> None: ...


def _endless() -> dict[str, Any]:
    state: dict[str, Any] = {}
    state["self"] = state
    return state


def test_the_place_of_unstorable_state_is_named(filled: CheckpointManager) -> None:
    """The message leads to the object, through every container."""
    with pytest.raises(UnsupportedStateError, match=r"extra_state\['deep'\]\[0\]\['in'\]\[1\]"):
        save(filled, 3, extra_state={"deep": [{"in": (1, object())}]})


# --- altered files ---


@dataclass(frozen=True)
class Damaged:
    """One way to alter a checkpoint: what becomes of its payload and its manifest."""

    name: str
    payload: bytes
    manifest: bytes


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, bytes]]:
    """An id and the files of an experiment with two checkpoints, by suffix; ``other`` are those of the second."""
    manager = CheckpointManager(CheckpointConfig(checkpoint_dir=str(tmp_path_factory.mktemp("pristine"))), "run")
    parts = build()
    first = manager.save_checkpoint(**parts.kwargs(), epoch=1, metrics={"val_loss": 0.5}, tags=["t"], description="é")
    second = manager.save_checkpoint(**build(1).kwargs(), epoch=1, metrics={"val_loss": 0.5}, tags=["t"])
    assert first is not None
    assert second is not None
    files = {
        "payload": payload_path(manager, first).read_bytes(),
        "manifest": manifest_path(manager, first).read_bytes(),
        "other payload": payload_path(manager, second).read_bytes(),
        "other manifest": manifest_path(manager, second).read_bytes(),
    }
    assert len(files["payload"]) == len(files["other payload"])
    return first, files


def _alterations(files: dict[str, bytes]) -> Iterator[Damaged]:
    payload, manifest = files["payload"], files["manifest"]
    chance = random.Random(20231201)
    for _ in range(100):
        position, bit = chance.randrange(len(payload)), chance.randrange(8)
        yield Damaged(f"payload bit {position}.{bit}", _flipped(payload, position, bit), manifest)
    for _ in range(60):
        position, bit = chance.randrange(len(manifest)), chance.randrange(8)
        yield Damaged(f"manifest bit {position}.{bit}", payload, _flipped(manifest, position, bit))
    for size in (0, 1, len(payload) // 2, len(payload) - 1, *(chance.randrange(len(payload)) for _ in range(12))):
        yield Damaged(f"payload cut to {size}", payload[:size], manifest)
    for size in (0, 1, len(manifest) // 2, len(manifest) - 1, *(chance.randrange(len(manifest)) for _ in range(12))):
        yield Damaged(f"manifest cut to {size}", payload, manifest[:size])
    for more in (b"\0", b"\n", b" ", payload, b"x" * 70_000):
        yield Damaged(f"payload and {len(more)} bytes more", payload + more, manifest)
        yield Damaged(f"manifest and {len(more)} bytes more", payload, manifest + more)
    start = len(payload) // 3
    yield Damaged("a hole of zeros", payload[:start] + bytes(600) + payload[start + 600 :], manifest)
    yield Damaged("bytes moved", payload[start:] + payload[:start], manifest)
    yield Damaged("another payload", files["other payload"], manifest)
    yield Damaged("another manifest", payload, files["other manifest"])
    yield Damaged("files swapped", manifest, payload)
    yield Damaged("rebuilt by another program", _rezipped(payload), manifest)
    yield Damaged("manifest spelled otherwise", payload, json.dumps(json.loads(manifest)).encode())
    edited = {**json.loads(manifest), "epoch": 7}
    yield Damaged("manifest edited", payload, (json.dumps(edited, indent=2, sort_keys=True) + "\n").encode())


def _flipped(data: bytes, position: int, bit: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1 << bit]) + data[position + 1 :]


def _rezipped(payload: bytes) -> bytes:
    """The same contents in other bytes: what an archive tool would make of it."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(payload)) as source, zipfile.ZipFile(target, "w") as archive:
        for item in source.infolist():
            archive.writestr(item.filename, source.read(item))
    return target.getvalue()


@pytest.mark.parametrize("part", range(8))
def test_every_alteration_is_reported_before_anything_is_handed_out(
    pristine: tuple[str, dict[str, bytes]], tmp_path: Path, part: int
) -> None:
    """Flips, cuts, extensions and swaps in either file: validate says so, load refuses, the model stays as it was."""
    checkpoint_id, files = pristine
    cases = list(_alterations(files))
    assert len(cases) >= 200
    manager = CheckpointManager(CheckpointConfig(checkpoint_dir=str(tmp_path)), "run")
    folder = experiment_folder(manager)
    folder.mkdir()
    parts = build(5)
    before = state_of(parts)
    for case in cases[part::8]:
        (folder / f"{checkpoint_id}.pt").write_bytes(case.payload)
        (folder / f"{checkpoint_id}.json").write_bytes(case.manifest)
        present = contents(folder)
        report = manager.validate_checkpoint(checkpoint_id)
        assert not report, case.name
        assert report.damages[0].message, case.name
        refusals = (IntegrityError, UnsupportedSchemaError)  # a flip may make the version's number larger
        with pytest.raises(refusals):
            manager.load_checkpoint(checkpoint_id, **parts.kwargs())
        with pytest.raises(IntegrityError):
            manager.resume(**parts.kwargs())
        with pytest.raises(refusals):
            manager.export_checkpoint(checkpoint_id, tmp_path / "exports")
        assert state_of(parts) == before, case.name
        assert contents(folder) == present, case.name
    assert not list(tmp_path.glob("exports/checkpoint*"))


def test_the_report_tells_where(pristine: tuple[str, dict[str, bytes]], tmp_path: Path) -> None:
    """Cuts and extensions are reported with the byte range that is missing or too much."""
    checkpoint_id, files = pristine
    manager = CheckpointManager(CheckpointConfig(checkpoint_dir=str(tmp_path)), "run")
    folder = experiment_folder(manager)
    folder.mkdir()
    (folder / f"{checkpoint_id}.json").write_bytes(files["manifest"])
    size = len(files["payload"])
    for content, kind, start, stop in (
        (files["payload"][:100], "truncated", 100, size),
        (files["payload"] + b"more", "extended", size, size + 4),
    ):
        (folder / f"{checkpoint_id}.pt").write_bytes(content)
        (damage,) = manager.validate_checkpoint(checkpoint_id).damages
        assert (damage.kind, damage.start, damage.stop) == (kind, start, stop)
        with pytest.raises(CorruptCheckpointError) as caught:
            manager.load_checkpoint(checkpoint_id)
        assert [(found.kind, found.start, found.stop) for found in caught.value.damages] == [(kind, start, stop)]
        assert caught.value.path == str(folder / f"{checkpoint_id}.pt")
        assert caught.value.checkpoint_id == checkpoint_id


def test_damage_of_one_checkpoint_hides_no_other(filled: CheckpointManager) -> None:
    """With an unreadable manifest in the folder, everything else is listed, loaded and saved as before."""
    path = manifest_path(filled, ids(filled)[0])
    content = path.read_bytes()
    try:
        for damage in (b"", b"\xff\xfe", b'{"a":' + b"[" * 50_000, b"null", b'{"schema_version": "1"}'):
            path.write_bytes(damage)
            assert len(ids(filled)) == 1
            assert filled.load_checkpoint("best")
            assert [bool(report) for report in filled.validate_all()] == [True, False]
    finally:
        path.write_bytes(content)


def test_without_validation_a_broken_file_is_still_a_typed_error(make_manager: MakeManager) -> None:
    """validate_checkpoints=False skips the reading ahead; a file that torch cannot read is reported all the same."""
    manager = make_manager(validate_checkpoints=False)
    saved = save(manager, 1)
    assert manager.load_checkpoint(saved)["epoch"] == 1
    path = payload_path(manager, saved)
    content = path.read_bytes()
    for damaged in (b"", content[:-200], b"x" * len(content)):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            manager.load_checkpoint(saved, model=nn.Linear(2, 1))
        assert not manager.validate_checkpoint(saved)


# --- manifests made by hand ---


def _write_checkpoint(
    manager: CheckpointManager, checkpoint_id: str, payload: bytes, **changes: Any
) -> tuple[Path, Path]:
    """A payload of any content with a manifest that fits it: what someone can make who knows the format."""
    entry = {
        "name": f"{checkpoint_id}.pt",
        "size_bytes": len(payload),
        "sha256": hashlib.sha256(payload).hexdigest(),
        "chunk_size_bytes": 2**23,
        "chunk_xxh3_128": [xxhash.xxh3_128_hexdigest(payload)] if payload else [],
    }
    facts = {
        "checkpoint_id": checkpoint_id,
        "timestamp": "2023-12-01T14:30:22Z",
        "epoch": 1,
        "step": 0,
        "model_name": "Linear",
        "experiment_name": "run",
        "sequence": 1,
        "uid": "0" * 32,
        "claim": "0" * 16,
        "format": "torch",
        "files": [entry],
    }
    folder = experiment_folder(manager)
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / f"{checkpoint_id}.pt", folder / f"{checkpoint_id}.json"
    paths[0].write_bytes(payload)
    paths[1].write_bytes(Manifest.model_validate({**facts, **changes}).to_bytes())
    return paths


FORGED_ID = "checkpoint_epoch_0001_step_000000_20231201_143022"


class _Exploit:
    """Creates the canary when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


def test_a_pickle_with_code_runs_only_when_it_is_trusted_by_name(manager: CheckpointManager, tmp_path: Path) -> None:
    """A malicious payload with fitting digests is no valid one, and no door but one by its name runs its code."""
    canary = tmp_path / "canary"
    content = io.BytesIO()
    torch.save({"model_state_dict": {}, "extra_state": _Exploit(canary)}, content)
    _write_checkpoint(manager, FORGED_ID, content.getvalue())
    assert [damage.kind for damage in manager.validate_checkpoint(FORGED_ID).damages] == ["unloadable"]
    with pytest.raises(NoValidCheckpointError, match="more than tensors"):
        manager.resume()
    calls: tuple[Callable[[], object], ...] = (
        lambda: manager.load_checkpoint(FORGED_ID),
        lambda: manager.load_checkpoint("latest", model=nn.Linear(2, 1)),
        lambda: manager.compare_checkpoints([FORGED_ID, FORGED_ID], tensors=True),
    )
    for call in calls:
        with pytest.raises(UnsafePayloadError, match="trust_pickle=True"):
            call()
    exported = manager.export_checkpoint(FORGED_ID, tmp_path / "exports")
    facts = json.loads(Path(exported).with_suffix(".json").read_text())
    del facts["manifest_sha256"]
    Path(exported).with_suffix(".json").write_bytes(Manifest.model_validate({**facts, "uid": "1" * 32}).to_bytes())
    with pytest.raises(UnsafePayloadError, match="trust_pickle=True"):
        manager.import_checkpoint(exported)
    assert not canary.exists()
    manager.load_checkpoint(FORGED_ID, trust_pickle=True)
    assert canary.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a torch file",
        b"PK\x03\x04broken",
        b"PK\x05\x06" + bytes(18),
        b"\x80\x02}.",
        b"\x80\x02.",
        b"\x80\x02]q\x00.",
        pickle.dumps([1, 2]),
        b"\x1f\x8b\x08gzip",
        bytes(5_000),
    ],
    ids=lambda content: repr(content[:12]),
)
def test_a_payload_that_torch_did_not_write(manager: CheckpointManager, content: bytes) -> None:
    """Whatever an intact file holds, loading it ends in a typed error."""
    _write_checkpoint(manager, FORGED_ID, content)
    model = nn.Linear(2, 1)
    with pytest.raises(CheckpointError):
        manager.load_checkpoint(FORGED_ID, model=model)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"checkpoint_id": MISSING_ID}, IntegrityError),
        ({"schema_version": 99}, UnsupportedSchemaError),
        ({"format": "unheard-of"}, UnsupportedFormatError),
    ],
)
def test_manifests_that_say_something_else(
    manager: CheckpointManager, changes: dict[str, Any], expected: type[Exception]
) -> None:
    """Another id, a newer schema, an unknown format: each has its own error, and none of them breaks the list."""
    content = io.BytesIO()
    torch.save({"model_state_dict": {}}, content)
    payload, manifest = _write_checkpoint(manager, FORGED_ID, content.getvalue())
    fields = {**json.loads(manifest.read_bytes()), **changes}
    fields.pop("manifest_sha256")
    body = json.dumps(fields, indent=2, sort_keys=True, ensure_ascii=False).encode()
    fields["manifest_sha256"] = hashlib.sha256(body).hexdigest()
    manifest.write_bytes(json.dumps(fields, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n")
    with pytest.raises(expected):
        manager.load_checkpoint(FORGED_ID)
    assert len(ids(manager)) == (expected is UnsupportedFormatError)
    assert payload.exists()


@pytest.mark.parametrize("name", ["../../escape.pt", "/etc/passwd", "other.pt", f"{FORGED_ID}.json", f"{FORGED_ID}"])
def test_manifests_that_name_another_file(manager: CheckpointManager, name: str) -> None:
    """A manifest cannot lead to a file that is not its own payload, not even to have it deleted."""
    _, manifest = _write_checkpoint(manager, FORGED_ID, b"x")
    outside = Path(manager.config.checkpoint_dir).parent / "escape.pt"
    outside.write_bytes(b"x")
    fields = json.loads(manifest.read_bytes())
    fields["files"][0]["name"] = name
    fields.pop("manifest_sha256")
    body = json.dumps(fields, indent=2, sort_keys=True, ensure_ascii=False).encode()
    fields["manifest_sha256"] = hashlib.sha256(body).hexdigest()
    manifest.write_bytes(json.dumps(fields, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n")
    for call in (manager.load_checkpoint, manager.delete_checkpoint, manager.backup_checkpoint):
        with pytest.raises(IntegrityError):
            call(FORGED_ID)
    assert outside.read_bytes() == b"x"


# --- places ---


@pytest.mark.parametrize("url", ["s3://bucket/x", "gs://b", "http://host/x", "simplecache::s3://b/x"])
def test_stores_that_are_not_served(manager: CheckpointManager, url: str) -> None:
    """A URL of another kind is refused as store, as backup location and as destination, and makes no folder."""
    saved = save(manager, 1)
    before = contents(Path(manager.config.checkpoint_dir).parent)
    for call in (
        lambda: CheckpointManager(CheckpointConfig(checkpoint_dir=url), "run"),
        lambda: CheckpointManager(manager.config.model_copy(update={"backup_dir": url}), "run"),
        lambda: manager.export_checkpoint(saved, url),
        lambda: manager.import_checkpoint(url),
    ):
        with pytest.raises(ConfigError, match="no store serves"):
            call()
    assert contents(Path(manager.config.checkpoint_dir).parent) == before
    assert not Path(url.partition(":")[0] + ":").exists()


@pytest.mark.parametrize("place", ["", "a\0b", None, 5, b"bytes"])
def test_places_that_are_no_path(filled: CheckpointManager, place: Any) -> None:
    """What is no path is one typed error for exports, imports and stores."""
    for call in (
        lambda: filled.export_checkpoint("latest", place),
        lambda: filled.import_checkpoint(place),
        lambda: open_store(place),
    ):
        with pytest.raises(ConfigError):
            call()


def test_a_file_where_the_store_should_be(tmp_path: Path) -> None:
    """A checkpoint_dir that is a file is refused when it is read and when it is written, and stays as it is."""
    place = tmp_path / "store"
    place.write_bytes(b"precious")
    manager = CheckpointManager(CheckpointConfig(checkpoint_dir=str(place)), "run")
    for call in (
        lambda: save(manager, 1),
        manager.list_checkpoints,
        manager.resume,
        manager.cleanup_checkpoints,
        lambda: manager.load_checkpoint("latest"),
    ):
        with pytest.raises(NotAStoreError):
            call()
    assert place.read_bytes() == b"precious"


def test_a_folder_that_is_not_ours(tmp_path: Path) -> None:
    """A folder of other things is told from a store, and cleaning up in it touches nothing that was there."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    (tmp_path / "run" / "model.pt").write_bytes(b"mine")
    before = snapshot(tmp_path)
    with pytest.raises(NotAStoreError):
        list_experiments(open_store(tmp_path))
    manager = CheckpointManager(CheckpointConfig(checkpoint_dir=str(tmp_path)), "run")
    assert ids(manager) == []
    assert manager.resume() is None
    manager.cleanup_checkpoints()
    with pytest.raises(NotACheckpointError):
        manager.import_checkpoint(tmp_path / "run" / "model.pt")
    with pytest.raises(NotACheckpointError):
        manager.import_checkpoint(tmp_path / "run")
    after = snapshot(tmp_path)
    assert {name: after.get(name) for name in before} == before


@pytest.mark.parametrize("source", ["missing", "missing/also", f"missing/{MISSING_ID}.pt", "."])
def test_importing_what_is_not_there(filled: CheckpointManager, tmp_path: Path, source: str) -> None:
    """A missing file or folder to import from is one typed error, and is not created."""
    with pytest.raises(NotACheckpointError):
        filled.import_checkpoint(tmp_path / "nowhere" / source)
    assert not (tmp_path / "nowhere").exists()


def test_backups_cannot_lie_where_the_checkpoints_do(tmp_path: Path) -> None:
    """A backup_dir that is the checkpoint_dir, however it is spelled, would be no backup: it is refused."""
    (tmp_path / "link").symlink_to(tmp_path)
    for spelling in (str(tmp_path), f"{tmp_path}/", f"file://{tmp_path}", f"{tmp_path}/x/..", str(tmp_path / "link")):
        with pytest.raises(ConfigError, match="backup"):
            CheckpointManager(CheckpointConfig(checkpoint_dir=str(tmp_path), backup_dir=spelling), "run")


def test_links_are_not_followed_when_listing_or_cleaning(make_manager: MakeManager, tmp_path: Path) -> None:
    """A symbolic link with the name of a manifest or a leftover is not ours: it is neither read nor removed."""
    manager = make_manager(max_checkpoints=1)
    save(manager, 1)
    target = tmp_path / "target"
    target.write_text("precious")
    folder = experiment_folder(manager)
    links = [folder / f"{MISSING_ID}.json", folder / f".{MISSING_ID}.deleted"]
    for link in links:
        link.symlink_to(target)
    manager.cleanup_checkpoints()
    assert len(ids(manager)) == 1
    assert all(link.is_symlink() for link in links)
    assert target.read_text() == "precious"


# --- a store that refuses ---

_CHILD = """
import json, os, subprocess, sys
from pathlib import Path
import torch
from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.errors import CheckpointError
sys.path.insert(0, os.getcwd())
from tests.helpers import contents

root = Path(sys.argv[1])
manager = CheckpointManager(CheckpointConfig(checkpoint_dir=str(root), backup_checkpoints=False), "run")
small, large = torch.nn.Linear(4, 4), torch.nn.Linear(1500, 1500)

def first_save():
    saved = manager.save_checkpoint(model=small, epoch=1, metrics={"val_loss": 0.5})
    manager.edit_checkpoint(saved, add_tags=["before"])
    assert manager.backup_checkpoint(saved)
    return saved

def refused(call):
    before = contents(root)
    try:
        call()
    except CheckpointError as error:
        kind = type(error).__name__
    else:
        kind = "nothing was raised"
    assert contents(root) == before, "something was written or lost"
    assert manager.validate_checkpoint("latest")
    assert manager.resume(torch.nn.Linear(4, 4))["epoch"] == 1
    return kind

def save_large():
    manager.save_checkpoint(model=large, epoch=2, metrics={"val_loss": 0.1})
"""

_FULL_DISK = (
    _CHILD
    + """
first_save()
print(refused(save_large))
print(manager.save_checkpoint(model=small, epoch=3) is not None)
"""
)

_SIZE_LIMIT = (
    _CHILD
    + """
import resource
first_save()
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, resource.RLIM_INFINITY))
print(refused(save_large))
print(manager.save_checkpoint(model=small, epoch=3) is not None)
"""
)

_CLOSED = (
    _CHILD
    + """
first_save()
root.parent.chmod(0)
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
other = CheckpointManager(manager.config, "other")
names = (
    "list_checkpoints", "get_latest_checkpoint", "get_best_checkpoint", "checkpoint_ids", "list_backups", "scrub",
    "doctor", "cleanup_checkpoints", "list_quarantined",
)
calls = [getattr(one, name) for one in (manager, other) for name in names]
calls += [save_large, lambda: other.save_checkpoint(model=small, epoch=1), lambda: manager.resume(model=small)]
for call in calls:
    try:
        call()
    except CheckpointError as error:
        print(type(error).__name__)
    else:
        print("nothing was raised")
"""
)

_READ_ONLY = (
    _CHILD
    + """
first_save()
mounted = sys.argv[2:] == ["mounted"]
if mounted:
    subprocess.run(["mount", "-o", "remount,ro", str(root)], check=True)
else:
    for path in sorted(root.rglob("*"), reverse=True):
        path.chmod(0o555 if path.is_dir() else 0o444)
    root.chmod(0o555)
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
print(refused(save_large))
print(refused(lambda: manager.edit_checkpoint("latest", add_tags=["x"])))
print(refused(lambda: manager.delete_checkpoint("latest")))
print(refused(lambda: manager.pin_checkpoint("latest")))
print(refused(lambda: manager.export_checkpoint("latest", root / "exports")))
print(refused(lambda: CheckpointManager(manager.config, "other").save_checkpoint(model=small, epoch=1)))
"""
)


def _mount_prefix(folder: Path, size: str) -> list[str] | None:
    """A command prefix under which ``folder`` is a small file system of its own, or ``None`` where none can be made."""
    if sys.platform != "linux" or not shutil.which("unshare"):
        return None
    script = f'mount -t tmpfs -o size={size} tmpfs "$0" && exec "$@"'
    for flags in (["--mount"], ["--user", "--map-root-user", "--mount"]):
        prefix = ["unshare", *flags, "sh", "-c", script, str(folder)]
        try:
            run_python("", prefix=prefix)
        except AssertionError:
            continue
        return prefix
    return None


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user can reach, as those of pytest are not."""
    import tempfile

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        path = Path(name)
        path.chmod(0o755)
        (path / "store").mkdir()
        yield path / "store"
        for found in (path, *path.rglob("*")):
            if found.is_dir():
                found.chmod(stat.S_IRWXU)


def test_a_full_disk(open_folder: Path) -> None:
    """A save that does not fit is one typed error; what was there stays, no leftover takes space, small saves go on."""
    prefix = _mount_prefix(open_folder, "2m")
    if prefix is None:  # the other real way to run out of space
        assert run_python(_SIZE_LIMIT, open_folder).split() == ["StoreError", "True"]
    else:
        assert run_python(_FULL_DISK, open_folder, prefix=prefix).split() == ["StorageFullError", "True"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on the size of files")
def test_a_file_size_limit(open_folder: Path) -> None:
    """It is no full store: freeing space would not help, so no room is made."""
    assert run_python(_SIZE_LIMIT, open_folder).split() == ["StoreError", "True"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows folders are not closed by their mode")
def test_a_store_in_a_folder_that_one_may_not_enter(open_folder: Path) -> None:
    """It is refused by every call, and is no empty store."""
    assert set(run_python(_CLOSED, open_folder).split()) == {"StorePermissionError"}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows folders are not made read-only by their mode")
def test_a_read_only_folder(open_folder: Path) -> None:
    """Without the right to write, every change is one typed error, and reading goes on."""
    assert set(run_python(_READ_ONLY, open_folder).split()) == {"StorePermissionError"}


def test_a_read_only_file_system(open_folder: Path) -> None:
    """A file system that went read-only, as after an error of its disk, ends the same way."""
    prefix = _mount_prefix(open_folder, "4m")
    if prefix is None:  # without the right to mount, the rights of the folder are what is left to take away
        output = run_python(_READ_ONLY, open_folder)
    else:
        output = run_python(_READ_ONLY, open_folder, "mounted", prefix=prefix)
    assert set(output.split()) == {"StorePermissionError"}


_UNREADABLE = """
import os, subprocess, sys
from tests.torture.namespaces import enter_namespace
enter_namespace()
from torch import nn
from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.errors import StoreError

manager = CheckpointManager(CheckpointConfig(checkpoint_dir=sys.argv[1]), "run")
saved = manager.save_checkpoint(model=nn.Linear(2, 1), epoch=1)
payload = f"{sys.argv[1]}/run/{saved}.pt"
subprocess.run(["mount", "--bind", f"/proc/{os.getpid()}/mem", payload], check=True)  # its first page cannot be read
try:
    manager.load_checkpoint(saved)
except StoreError as error:
    print(type(error).__name__)
print([damage.kind for damage in manager.validate_checkpoint(saved).damages])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")
def test_unreadable_bytes_are_a_typed_error(store_path: Path) -> None:
    """A payload that the disk cannot give back: validation reports it, loading fails as the store's failure."""
    assert run_python(_UNREADABLE, store_path) == "StoreError\n['unreadable']\n"


@pytest.mark.parametrize("target", ["a whole payload", "nothing", "/proc/self/mem"])
def test_a_link_in_the_place_of_a_payload_is_no_payload(
    manager: CheckpointManager, tmp_path: Path, target: str
) -> None:
    """It is not followed, wherever it leads: the payload is missing, and what the link leads to stays as it is."""
    saved = save(manager, 1)
    path, other = payload_path(manager, saved), tmp_path / "a whole payload"
    content = path.read_bytes()
    other.write_bytes(content)
    path.unlink()
    path.symlink_to(tmp_path / target)
    with pytest.raises(CorruptCheckpointError, match="is missing"):
        manager.load_checkpoint(saved)
    assert [damage.kind for damage in manager.validate_checkpoint(saved).damages] == ["missing"]
    manager.delete_checkpoint(saved)
    manager.cleanup_checkpoints()
    assert other.read_bytes() == content


def test_one_payload_that_cannot_be_read_stops_neither_cleanup_nor_resume(
    make_manager: MakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bad sector under one payload is damage of that checkpoint: others are loaded, and retired, as ever."""
    manager = make_manager(backup_checkpoints=False, max_checkpoints=100)
    saved = [save(manager, epoch) for epoch in (1, 2, 3, 4)]
    bad = str(payload_path(manager, saved[3]))

    read_at = LocalReader.read_at

    def fail(reader: LocalReader, start: int, stop: int) -> bytes:
        if str(reader._path) == bad:
            raise StoreError("the store failed: Input/output error", path=bad)
        return read_at(reader, start, stop)

    monkeypatch.setattr(LocalReader, "read_at", fail)
    monkeypatch.setattr(LocalReader, "fileno", lambda _: None)  # else it is read past that
    again = make_manager(backup_checkpoints=False, max_checkpoints=2)
    resumed = again.resume()
    assert resumed is not None
    assert resumed["checkpoint_id"] == saved[2]
    assert [item["checkpoint_id"] for item in resumed["passed_over"]] == [saved[3]]
    report = again.cleanup_checkpoints()
    assert report.deleted_ids == (saved[1],)
    assert ids(again) == [saved[0], *saved[2:]]


def test_a_policy_that_fails_does_not_fail_the_save(store_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever a retention policy of the caller's raises: the checkpoint is safe already, and is acknowledged."""

    class Broken:
        def reasons(self, records: Any) -> dict[str, str]:
            raise KeyError("a mistake in it")

    policy: Any = Broken()
    manager = CheckpointManager(CheckpointConfig(checkpoint_dir=str(store_path)), "run", retention_policy=policy)
    saved = save(manager, 1)
    assert ids(manager) == [saved]
    assert "deleting old checkpoints failed" in caplog.text


def test_a_manifest_that_could_not_be_read_again_is_not_written(
    filled: CheckpointManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A configuration that makes the manifest too large fails the save instead of making it unreadable."""
    monkeypatch.setattr(Record, "MAX_BYTES", 10_000)
    before = ids(filled)
    with pytest.raises(ConfigError, match="too large"):
        save(filled, 9, config={"text": "x" * 10_000})
    assert ids(filled) == before
    assert not filled.list_unreadable()


@pytest.mark.parametrize("state", [None, [1], "text"])
def test_a_state_that_is_no_mapping_is_refused(filled: CheckpointManager, state: Any) -> None:
    """Saved, it could not be told from a part that was left out."""

    class Odd:
        def state_dict(self) -> Any:
            return state

        def load_state_dict(self, state_dict: Any) -> None: ...

    with pytest.raises(UnsupportedStateError, match="not a mapping"):
        filled.save_checkpoint(model=Odd(), epoch=9)


@pytest.mark.parametrize("map_location", [0, 3.5, ["cpu"]])
def test_a_wrong_map_location_is_not_called_damage(filled: CheckpointManager, map_location: Any) -> None:
    """Taken for damage, it would make resuming pass every checkpoint over."""
    for call in (filled.load_checkpoint, filled.resume):
        with pytest.raises(ConfigError, match="map_location"):
            call(map_location=map_location)


def test_a_lack_of_memory_is_not_called_damage(filled: CheckpointManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken for damage, it would make resuming go back to an older, perhaps smaller, checkpoint."""

    def fail(*_arguments: Any, **_options: Any) -> Any:
        return torch.empty(10**16)

    monkeypatch.setattr(torch, "load", fail)
    for call in (filled.load_checkpoint, filled.resume):
        with pytest.raises(MemoryError):
            call(map_location={})  # what only torch itself can do


def test_failures_after_the_save_do_not_fail_it(make_manager: MakeManager, tmp_path: Path) -> None:
    """When backing up or the snapshot cannot work, the save stands, is acknowledged and the failure is logged."""
    (tmp_path / "backups").write_text("a file where the backups should go")
    manager = make_manager(backup_dir=str(tmp_path / "backups"))
    folder = experiment_folder(manager)
    (folder / "checkpoint_metadata.json").mkdir(parents=True)
    saved = save(manager, 1)
    assert manager.validate_checkpoint(saved)
    assert ids(manager) == [saved]
    assert contents(folder).keys() == {"checkpoint_metadata.json", f"{saved}.json", f"{saved}.pt"}
