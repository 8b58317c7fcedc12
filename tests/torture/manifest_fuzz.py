"""Row 36: manifests, and every other small file of a folder, with anything in them."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import random
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ckpt_lib import CheckpointManager
from ckpt_lib.core.manifest import Claim, Manifest, parse_record
from ckpt_lib.core.owners import Owner
from ckpt_lib.errors import CheckpointError, IntegrityError, UnsupportedSchemaError
from ckpt_lib.experiment.layout import CLOCK_NAME, key_name, uid_name
from ckpt_lib.store.checks import OWN_FOLDER
from ckpt_lib.store.local.folder_lock import LOCK_NAME
from tests.torture.attacker import EXPERIMENT, PLANTED_ID, manifest_for
from tests.torture.places import LOCAL
from tests.torture.planted import PLAIN_BYTES, manifest_of, open_planted, plant_files, sound_files
from tests.torture.rows import Outcome, Row
from tests.torture.sandbox import run_in_child
from tests.torture.settings import FORMATS, Setting, Site, everything_installed, setting, told_settings

# fmt: off
_VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**400, 0.5, -0.0, 1e308, math.inf,
    math.nan, "", " ", "x", "\0", "\u202e", "\ud800", "\U0001f680", "../x", "/etc/passwd", "NaN",
    "Infinity", "x" * 5000, "\n", "e\u0301", PLANTED_ID,
    "checkpoint_epoch_0001_step_000001_20260102_030405_2", "2026-01-02T03:04:05Z",
    "0001-01-01T00:00:00Z", "9999-12-31T23:59:59-23:59", "-262143-01-01T00:00:00Z", "torch",
    "builtins", "__class__", "0" * 32, "f" * 64, "F" * 64, [], [[]], [None], ["x", "x"], [1] * 100,
    {}, {"": {}}, {"x": {"y": [{}]}}, {"name": "../x"},
]
_KEYS = [
    "", "x", "name", "files", "schema_version", "__dict__", "model_config", "is_best", "\ud800",
    "MAX_BYTES", "uid ",
]
# fmt: on


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every container in nested JSON with each of its keys."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        item = waiting.pop()
        keys = list(item) if isinstance(item, dict) else list(range(len(item)))
        found += [(item, key) for key in keys]
        waiting += [item[key] for key in keys if isinstance(item[key], dict | list)]
    return found


def mutate(choice: random.Random, fields: dict[str, Any]) -> dict[str, Any]:
    """Another type, another name, a part less or more, in one to three places."""
    for _ in range(choice.randint(1, 3)):
        container, key = choice.choice(_places(fields) or [(fields, "x")])
        match choice.randrange(5):
            case 0 | 1:
                container[key] = json.loads(json.dumps(choice.choice(_VALUES)))
            case 2 if key in container or isinstance(container, list):
                container.pop(key)
            case 3 if isinstance(container, dict):
                container[choice.choice(_KEYS)] = choice.choice(_VALUES)
            case _:
                old = container.get(key) if isinstance(container, dict) else container[key]
                if isinstance(old, int):
                    container[key] = choice.choice([old + 1, -old, old * 2**40, float(old % 2**60), str(old)])
                elif isinstance(old, str):
                    at = choice.randint(0, len(old))
                    container[key] = (
                        old[:at] + choice.choice(["", "\0", "e\u0301", "x", "\ud800", "/../"]) + old[at + 1 :]
                    )
    return fields


def spell(choice: random.Random, fields: dict[str, Any]) -> bytes:
    """As JSON: mostly signed and canonical, as by an attacker who knows how; else in some other spelling, or broken."""
    fields.pop("manifest_sha256", None)
    style = choice.random()
    try:
        body = json.dumps(fields, indent=2, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
    except (TypeError, ValueError):
        body = repr(fields).encode("utf-8", "surrogatepass")
    signed = {**fields, "manifest_sha256": hashlib.sha256(body).hexdigest()}
    try:
        data = json.dumps(signed, indent=2, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
    except (TypeError, ValueError):
        return body
    if style < 0.75:
        return data
    if style < 0.85:
        return json.dumps(signed, ensure_ascii=choice.random() < 0.5).encode("utf-8", "surrogatepass")
    broken = bytearray(data)
    at = choice.randrange(len(broken))
    match choice.randrange(4):
        case 0:
            broken[at] ^= 1 << choice.randrange(8)
        case 1:
            del broken[at:]
        case 2:
            broken[at:at] = choice.choice([b"1e400", b"\xff\xfe", b"\0", b"NaN", b"[" * 2000, b'"', b"9" * 5000])
        case _:
            broken += choice.choice([b"\n", b"{}", b"\0" * 4096])
    return bytes(broken)


def _read_back(data: bytes) -> str | None:
    """What is wrong with how a manifest is read: a typed error is right, and so is one that rebuilds these bytes."""
    try:
        record = parse_record(data, path="fuzz")
        described = record.describe() if isinstance(record, Manifest) else record
        again = record.to_bytes()
    except (IntegrityError, UnsupportedSchemaError):
        return None
    except CheckpointError as error:
        return f"it was read, and then {type(error).__name__}: {error}"
    if parse_record(again, path="fuzz").to_bytes() != again:
        return "it is another one after each rewrite"
    if described.checkpoint_id != record.checkpoint_id:
        return "it is described as another"
    return None


def fuzz(count: int, seed: str, folder: Path) -> Outcome:
    """Read each manifest; put every fortieth, or another small file, into a folder that is worked with."""
    with everything_installed():
        return _fuzz(count, seed, folder)


def _fuzz(count: int, seed: str, folder: Path) -> Outcome:
    outcome, worked, struck = Outcome(), 0, Counter[Setting]()
    facts: dict[str, Any] = {"metrics": {"loss": 0.5}, "config": {"lr": [0.1]}, "tags": ("a",)}
    settings = [Setting(stored_format) for stored_format in FORMATS]
    manifests = {
        place.format: manifest_of(place, sound_files(place), plain_size_bytes=PLAIN_BYTES, **facts).to_bytes()
        for place in settings
    }
    for number in range(count):
        choice, place = random.Random(f"{seed} {number}"), setting(number // 40 + number % 40)
        base = manifests[place.format] if choice.random() >= 0.25 else _claim().to_bytes()
        data = spell(choice, mutate(choice, json.loads(base)))
        struck[place] += 1
        outcome.injected += 1
        try:
            problem = _read_back(data)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        if problem:
            outcome.violations.append(f"seed {seed!r} {number}: {ascii(problem)[:500]}")
        if number % 40 == 0:
            worked += 1
            site = Site(folder / str(number), place.kind)
            problem = _work_beside(choice, data, site, place)
            if problem:
                outcome.violations.append(f"seed {seed!r} {number}, {place}: {problem}")
            site.discard()
            shutil.rmtree(site.root, ignore_errors=True)
    outcome.detail = f"{worked} of them, or other small files, in folders at work{told_settings(struck)}"
    return outcome


_OTHER_ID = "checkpoint_epoch_0007_step_000007_20260102_030407"
_KEY_NAME = key_name("a key")
_FILES = {
    "the manifest": f"{PLANTED_ID}.json",
    "another manifest": f"{_OTHER_ID}.json",
    "a backup's": f"backups/{PLANTED_ID}.json",
    "the snapshot": "checkpoint_metadata.json",
    "the scrub's record": ".ckpt-scrub.json",
    "the pointer of a key": _KEY_NAME,
    "the pointer of a copy": uid_name(manifest_for(b"").uid),
    "the clock": CLOCK_NAME,
    "the lock": f"{OWN_FOLDER}/{LOCK_NAME}",
    "an unfinished file": f"{OWN_FOLDER}/0123456789abcdef.tmp",
    "a file of no save": f"{PLANTED_ID}.0123456789abcdef.pt",
}


def _claim() -> Claim:
    """A claim of a dead process, which the next sweep ends."""
    owner = Owner(host="h", system="s", pid=1, started="1")
    files = (f"{PLANTED_ID}.pt",)
    return Claim(checkpoint_id=PLANTED_ID, uid="e" * 32, claim="e" * 16, state="saving", owner=owner, files=files)


def _pointer(choice: random.Random) -> bytes:
    fields = {"checkpoint_id": choice.choice([PLANTED_ID, _OTHER_ID]), "uid": "0123456789abcdef" * 2, "gone": False}
    return json.dumps(mutate(choice, fields)).encode()


def _scrub_record(choice: random.Random) -> bytes:
    outcome = {
        "version": "v",
        "sha256": "0" * 64,
        "checked_at": "2026-01-02T03:04:05Z",
        "report": {"checkpoint_id": PLANTED_ID, "experiment_name": EXPERIMENT},
    }
    fields = {
        "schema_version": 1,
        "experiment_name": EXPERIMENT,
        "started_at": "2026-01-02T03:04:05Z",
        "outcomes": {f"checkpoints/{PLANTED_ID}": outcome},
    }
    return json.dumps(mutate(choice, fields)).encode()


def _work_beside(choice: random.Random, data: bytes, site: Site, place: Setting) -> str | None:
    """Only on a disk are there a lock, files that are being written, and folders without files."""
    is_local = site.kind == LOCAL
    kind = choice.choice([kind for kind, name in _FILES.items() if is_local or OWN_FOLDER not in name])
    if "pointer" in kind:
        data = _pointer(choice)
    elif kind == "the scrub's record":
        data = _scrub_record(choice)
    sound = sound_files(place)
    plant_files(site, place, sound, manifest_of(place, sound, plain_size_bytes=PLAIN_BYTES).to_bytes())
    store = site.root / "store"
    site.write(store / EXPERIMENT / _FILES[kind], data)
    folders = [found / "outside" for found in (site.root, store, store / EXPERIMENT) if is_local]
    for folder in folders:
        folder.mkdir()
    ending = run_in_child(lambda: _work(site, place))
    problem = ending.broken_promise()
    if not all(folder.is_dir() for folder in folders):
        problem = "a folder outside was taken away"
    return f"{kind}: {problem}" if problem else None


def _work(site: Site, place: Setting) -> None:
    """Everything that reads a folder's small files. Each may be refused; the next must work all the same."""
    logging.getLogger("ckpt_lib").setLevel(logging.ERROR)

    manager = open_planted(site, place)
    calls: list[Callable[[], object]] = [
        manager.list_checkpoints,
        manager.list_unreadable,
        manager.list_backups,
        lambda: manager.get_checkpoint(PLANTED_ID),
        lambda: list(manager.validate_all()),
        lambda: manager.load_checkpoint("latest"),
        manager.get_best_checkpoint,
        lambda: manager.cleanup_checkpoints(dry_run=True),
        manager.scrub,
        lambda: manager.edit_checkpoint(PLANTED_ID, add_tags=["b"]),
        lambda: manager.backup_checkpoint(PLANTED_ID),
        manager.cleanup_checkpoints,
    ]
    for call in calls:
        with suppress(CheckpointError):
            call()
    manager.save_checkpoint(model=torch.nn.Linear(2, 1), epoch=3, idempotency_key="a key")
    saved = str(manager.save_checkpoint(model=torch.nn.Linear(2, 1), epoch=2))
    assert manager.validate_checkpoint(saved), "the next save is broken"
    assert _is_rebuilt(manager, site), "the snapshot was not rebuilt"


def _is_rebuilt(manager: CheckpointManager, site: Site) -> bool:
    content = json.loads(site.read(site.root / "store" / EXPERIMENT / "checkpoint_metadata.json") or b"")
    return [item["checkpoint_id"] for item in content["checkpoints"]] == [
        checkpoint.checkpoint_id for checkpoint in manager.list_checkpoints()
    ]


ROWS = [
    Row(
        number=36,
        fault="manifest and index fuzz",
        must_hold="typed error or an identical rebuild",
        unit="files",
        count=10_000,
        sample=200,
        run=fuzz,
    )
]
