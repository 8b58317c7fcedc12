"""Rows 37 and 39: stores that an earlier or later version wrote, and stores that somebody copied."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ckpt_lib import CheckpointManager
from ckpt_lib.errors import CheckpointError, UnsupportedSchemaError
from tests.torture.attacker import EXPERIMENT, contents, open_run, resigned
from tests.torture.rows import Outcome, Row

GOLDEN = Path(__file__).parent / "golden"
"""One folder for each schema that was ever released: a store, and ``expected.json`` that says what is in it."""


# --- row 37 ---


def two_versions(count: int, seed: str, folder: Path) -> Outcome:
    """Every golden store, read by this version; ``count`` only says how many fields of a later one are added."""
    outcome = Outcome()
    schemas = sorted(GOLDEN.iterdir())
    for schema in schemas:
        for name, check in (("read", _read_golden), ("newer", _refuse_newer)):
            _tell(outcome, f"{schema.name}, {name}", lambda: check(schema, folder / schema.name / name))  # noqa: B023
        for number in range(count):
            label = f"seed {seed!r} {number}, {schema.name}, unknown fields"
            place = folder / schema.name / str(number)
            _tell(outcome, label, lambda: _keep_unknown(schema, place, random.Random(f"{seed} {number}")))  # noqa: B023
    outcome.detail = f"{len(schemas)} released schema"
    return outcome


def _tell(outcome: Outcome, label: str, check: Callable[[], object]) -> None:
    outcome.injected += 1
    try:
        check()
    except (AssertionError, CheckpointError) as error:
        outcome.violations.append(f"{label}: {type(error).__name__}: {error}"[:500])


def _opened(schema: Path, place: Path) -> tuple[CheckpointManager, dict[str, Any]]:
    shutil.copytree(schema / "store", place / "store")
    return open_run(place / "store"), json.loads((schema / "expected.json").read_text(encoding="utf-8"))


def _read_golden(schema: Path, place: Path) -> None:
    manager, expected = _opened(schema, place)
    before = contents(place / "store")
    assert {name: hashlib.sha256(data).hexdigest() for name, data in before.items() if isinstance(data, bytes)} == (
        expected["files"]
    ), "the fixture itself was changed"
    assert manager.checkpoint_ids() == list(expected["checkpoints"]), "another set of checkpoints"
    for checkpoint_id, facts in expected["checkpoints"].items():
        assert manager.validate_checkpoint(checkpoint_id), "it does not validate"
        loaded = manager.load_checkpoint(checkpoint_id)
        found = manager.get_checkpoint(checkpoint_id)
        assert loaded["model_state_dict"]["weight"].tolist() == facts["weight"], "other weights were loaded"
        assert loaded["optimizer_state_dict"]["param_groups"][0]["lr"] == facts["lr"], "another optimizer was loaded"
        assert loaded["extra_state"] == facts["extra_state"], "another extra state was loaded"
        said = (found.epoch, found.step, list(found.tags), found.metrics, found.sequence)
        assert said == tuple(facts["facts"]), f"its facts are {said}"
    assert manager.backup_ids() == expected["backups"], "another set of backups"
    found_files = {name: data for name, data in contents(place / "store").items() if "/.ckpt-" not in name}
    assert found_files == before, "reading changed a file"
    saved = str(manager.save_checkpoint(model=torch.nn.Linear(2, 1), epoch=9))
    newest = max(facts["facts"][-1] for facts in expected["checkpoints"].values())
    assert manager.get_checkpoint(saved).sequence > newest, "the order starts anew"


def _refuse_newer(schema: Path, place: Path) -> None:
    manager, expected = _opened(schema, place)
    checkpoint_id = list(expected["checkpoints"])[-1]
    path = place / "store" / EXPERIMENT / f"{checkpoint_id}.json"
    for version in (2, 3, 10**6):
        path.write_bytes(resigned({"schema_version": version, "entirely": ["different"]}))
        assert _refused_version(manager, checkpoint_id) == version, "it was not refused by its number"
        before = path.read_bytes()
        manager.cleanup_checkpoints()
        assert path.read_bytes() == before, "cleanup changed what it cannot read"
        assert (place / "store" / EXPERIMENT / f"{checkpoint_id}.pt").exists(), "cleanup removed what it cannot read"


def _refused_version(manager: CheckpointManager, checkpoint_id: str) -> object:
    try:
        manager.load_checkpoint(checkpoint_id)
    except UnsupportedSchemaError as error:
        return error.got
    return None


def _keep_unknown(schema: Path, place: Path, choice: random.Random) -> None:
    manager, expected = _opened(schema, place)
    checkpoint_id = list(expected["checkpoints"])[-1]
    path = place / "store" / EXPERIMENT / f"{checkpoint_id}.json"
    shutil.rmtree(path.parent / "backups")
    fields = json.loads(path.read_bytes())
    news = {
        f"later_{choice.randrange(10**6)}": choice.choice([None, 1, "x", [1, {"y": "\u00e9"}], {"deep": {"er": [0.5]}}])
    }
    for target in (fields, fields["files"][0], fields["monitor"]):
        target.update(news)
    path.write_bytes(resigned(fields))

    def is_kept(at: Path) -> bool:
        found = json.loads(at.read_bytes())
        return all(news.items() <= part.items() for part in (found, found["files"][0], found["monitor"]))

    manager.edit_checkpoint(checkpoint_id, add_tags=["edited"])
    assert is_kept(path), "an edit lost them"
    manager.backup_checkpoint(checkpoint_id)
    assert is_kept(path.parent / "backups" / path.name), "a backup lost them"
    exported = Path(manager.export_checkpoint(checkpoint_id, place / "exported"))
    assert is_kept(exported.with_suffix(".json")), "an export lost them"
    other = CheckpointManager(manager.config.model_copy(update={"checkpoint_dir": str(place / "other")}), "imported")
    imported = other.import_checkpoint(exported)
    assert is_kept(place / "other" / "imported" / f"{imported}.json"), "an import lost them"
    manager.delete_checkpoint(checkpoint_id)
    manager.restore_checkpoint(checkpoint_id)
    assert is_kept(path), "a restoration lost them"


# --- row 39 ---


def _run(*command: str | Path, cwd: Path | None = None) -> None:
    subprocess.run([str(part) for part in command], check=True, capture_output=True, cwd=cwd)


def _by_tar(source: Path, target: Path) -> None:
    _run("tar", "-C", source, "-cf", target.with_suffix(".tar"), ".")
    target.mkdir()
    _run("tar", "-C", target, "-xf", target.with_suffix(".tar"))


def _by_zip(source: Path, target: Path) -> None:
    shutil.make_archive(str(target), "zip", source)
    with zipfile.ZipFile(target.with_suffix(".zip")) as archive:
        archive.extractall(target)


def _by_hand(source: Path, target: Path) -> None:
    """File by file, manifests first, as a tool may that knows nothing of an order."""
    for path in sorted(source.rglob("*"), key=lambda path: path.suffix != ".json"):
        if path.is_file():
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)


def _by_export(source: Path, target: Path) -> None:
    manager = open_run(source)
    other = open_run(target)
    for checkpoint_id in manager.checkpoint_ids():
        manager.export_checkpoint(checkpoint_id, target.with_suffix(".exported"))
        other.import_checkpoint(target.with_suffix(".exported") / f"{checkpoint_id}.pt")


def _by_restoring(source: Path, target: Path) -> None:
    """Nothing but the backups was copied; each is put back."""
    shutil.copytree(source / EXPERIMENT / "backups", target / EXPERIMENT / "backups")
    other = open_run(target)
    for found in other.list_backups():
        other.restore_checkpoint(found.checkpoint_id)


_WAYS: dict[str, Callable[[Path, Path], object]] = {
    "cp -r": lambda source, target: _run("cp", "-r", source, target),
    "cp -a": lambda source, target: _run("cp", "-a", source, target),
    "cp -rl": lambda source, target: _run("cp", "-rl", source, target),
    "tar": _by_tar,
    "zip": _by_zip,
    "copytree": shutil.copytree,
    "by hand": _by_hand,
    "export and import": _by_export,
    "restored backups": _by_restoring,
    "a backup as a store": lambda source, target: shutil.copytree(
        source / EXPERIMENT / "backups", target / EXPERIMENT, copy_function=shutil.copyfile
    ),
}
if shutil.which("rsync"):
    _WAYS["rsync"] = lambda source, target: _run("rsync", "-a", f"{source}/", target)


def foreign_copies(count: int, seed: str, folder: Path) -> Outcome:
    """What was copied verifies, is not swept, cleaned or repaired away, and the run goes on in it."""
    outcome, ways = Outcome(), list(_WAYS)
    source = folder / "source"
    original = _filled(source)
    for number in range(count):
        choice, way = random.Random(f"{seed} {number}"), ways[number % len(ways)]
        target = folder / f"copy-{number}"
        label = f"seed {seed!r} {number}, {way}"
        _tell(outcome, label, lambda: _check_copy(_WAYS[way], source, target, original, choice))  # noqa: B023
    outcome.detail = ", ".join(ways)
    return outcome


def _filled(store: Path) -> dict[str, list[float]]:
    manager = open_run(store, backup_checkpoints=True)
    weights = {}
    for epoch in range(3):
        model = torch.nn.Linear(3, 1)
        saved = manager.save_checkpoint(model=model, epoch=epoch, metrics={"val_loss": 1.0 / (epoch + 1)})
        weights[str(saved)] = model.weight.flatten().tolist()
    return weights


def _check_copy(
    way: Callable[[Path, Path], object],
    source: Path,
    target: Path,
    original: dict[str, list[float]],
    choice: random.Random,
) -> None:
    way(source, target)
    for path in target.rglob("*"):  # times of another machine, long ago or to come
        moment = choice.choice([4 * 10**8, 10**9, 3 * 10**9])
        os.utime(path, (moment, moment))
    copied = open_run(target)
    assert sorted(copied.checkpoint_ids()) == sorted(original), "another set of checkpoints"
    assert all(copied.validate_all()), "a copy does not verify"
    report = copied.cleanup_checkpoints()
    assert not report.swept, f"taken for leftovers: {report.swept}"
    assert not report.deleted_ids, f"deleted: {report.deleted_ids}"
    assert copied.scrub(), "the scrub found damage"
    for checkpoint_id, weight in original.items():
        loaded = copied.load_checkpoint(checkpoint_id)["model_state_dict"]["weight"]
        assert loaded.flatten().tolist() == weight, "other weights were loaded"
    newest = copied.get_checkpoint("latest")
    saved = str(copied.save_checkpoint(model=torch.nn.Linear(3, 1), epoch=9))
    assert copied.get_checkpoint(saved).sequence > newest.sequence, "the copy's order starts anew"
    assert open_run(source).checkpoint_ids() == list(original), "the source changed"


ROWS = [
    Row(
        number=37,
        fault="two versions",
        must_hold="old readable byte for byte; newer refused by number; unknown fields kept",
        unit="stores and rewrites",
        count=100,
        sample=5,
        run=two_versions,
    ),
    Row(
        number=39,
        fault="foreign copy",
        must_hold="validates; never taken for a leftover",
        unit="copies",
        count=110,
        sample=10,
        run=foreign_copies,
    ),
]
