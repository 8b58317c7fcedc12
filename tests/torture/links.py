"""Row 33: links where folders and files of ours should be, from the start; files are exchanged while it runs too."""

from __future__ import annotations

import itertools
import logging
import os
import random
import shutil
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from ckpt_lib import CheckpointManager
from ckpt_lib.errors import CheckpointError
from tests.torture.attacker import EXPERIMENT, PLANTED_ID, contents
from tests.torture.places import MISSING
from tests.torture.planted import PLAIN_BYTES, manifest_of, open_planted, payload_names, plant_files, sound_files
from tests.torture.rows import Outcome, Row
from tests.torture.sandbox import run_in_child
from tests.torture.settings import FORMATS, Setting, Site, everything_installed, told_settings

_ACTIONS: dict[str, Callable[[CheckpointManager], object]] = {
    "save": lambda manager: manager.save_checkpoint(model=torch.nn.Linear(64, 64), epoch=2),
    "delete": lambda manager: manager.delete_checkpoint(PLANTED_ID),
    "cleanup": lambda manager: manager.cleanup_checkpoints(),
    "backup": lambda manager: manager.backup_checkpoint(PLANTED_ID),
    "restore": lambda manager: manager.restore_checkpoint(PLANTED_ID),
    "edit": lambda manager: manager.edit_checkpoint(PLANTED_ID, add_tags=["x"]),
    "repair": lambda manager: manager.repair_checkpoint(PLANTED_ID),
    "scrub": lambda manager: manager.scrub(),
    "load": lambda manager: manager.load_checkpoint(PLANTED_ID),
}
_RECORDS = (f"{PLANTED_ID}.json", "checkpoint_metadata.json", ".ckpt-scrub.json")
_NO_LINKS = dict.fromkeys(MISSING, "linkless")


def _payload_files(place: Setting) -> list[str]:
    return sorted(payload_names(place, sound_files(place)).values())


def _folders(place: Setting) -> list[str]:
    """The experiment, its backups, and the folder of a payload of several files."""
    own = [] if place.suffix else [PLANTED_ID, f"backups/{PLANTED_ID}"]
    return ["", "backups", *own]


def _files(place: Setting) -> list[str]:
    payload = _payload_files(place)
    return [*payload, *_RECORDS, *(f"backups/{name}" for name in payload)]


def _lay_out(around: Path, place: Setting) -> None:
    """A store with a backup; outside it a folder that looks just like the experiment's, which nobody may touch."""
    site, sound = Site(around), sound_files(place)
    plant_files(site, place, sound, manifest_of(place, sound, plain_size_bytes=PLAIN_BYTES).to_bytes())
    open_planted(site, place).backup_checkpoint(PLANTED_ID)
    shutil.copytree(around / "store" / EXPERIMENT, around / "outside")
    for name in ("decoy.pt", "checkpoint_metadata.json", ".ckpt-scrub.json"):
        (around / "outside" / name).write_text("not ours")


def _replace_by_link(path: Path, target: Path, aside: Path) -> None:
    with suppress(OSError):
        path.rename(aside)
        path.symlink_to(target)


def _put_back(path: Path, aside: Path) -> None:
    with suppress(OSError):
        if path.is_symlink():
            path.unlink()
        if not path.exists():
            aside.rename(path)


class _Swapper(threading.Thread):
    """Exchanges a folder or file for a link and back, at random moments."""

    def __init__(self, seed: str, path: Path, target: Path, aside: Path) -> None:
        super().__init__(daemon=True)
        self._choice = random.Random(seed)
        self._places = path, target, aside
        self.is_over = threading.Event()

    def run(self) -> None:
        path, target, aside = self._places
        while not self.is_over.is_set():
            time.sleep(self._choice.random() * 0.002)
            _replace_by_link(path, target, aside)
            time.sleep(self._choice.random() * 0.002)
            _put_back(path, aside)


def _place(seed: str, around: Path, place: Setting, *, is_race: bool) -> tuple[Path, Path]:
    """What is to be exchanged, and for what. While an operation runs, folders stay: that is not defended against."""
    choice = random.Random(f"{seed} place")
    experiment, outside = around / "store" / EXPERIMENT, around / "outside"
    if not is_race and choice.random() < 0.6:
        name = choice.choice(_folders(place))
        return experiment / name, outside / name
    name = choice.choice(_files(place))
    return experiment / name, outside / name


def _act(around: Path, place: Setting, action: str, seed: str, is_race: bool) -> None:
    logging.getLogger("ckpt_lib").setLevel(logging.CRITICAL)
    path, target = _place(seed, around, place, is_race=is_race)
    aside = around / "aside"
    manager = open_planted(Site(around), place, max_checkpoints=1)
    if not is_race:
        _replace_by_link(path, target, aside)
        _ACTIONS[action](manager)
        return
    swapper = _Swapper(seed, path, target, aside)
    swapper.start()
    try:
        for _ in range(5):
            with suppress(CheckpointError):
                _ACTIONS[action](manager)
    finally:
        swapper.is_over.set()
        swapper.join()
        _put_back(path, aside)


def symlink_swaps(count: int, seed: str, folder: Path) -> Outcome:
    """Half of the links are there before the operation, half come and go while it runs."""
    with everything_installed():
        return _swap_links(count, seed, folder)


def _swap_links(count: int, seed: str, folder: Path) -> Outcome:
    outcome, raced, struck = Outcome(), 0, Counter[Setting]()
    for number in range(count):
        choice, place = random.Random(f"{seed} {number}"), Setting(FORMATS[number % len(FORMATS)])
        around = folder / str(number)
        _lay_out(around, place)
        struck[place] += 1
        before = contents(around / "outside")
        action, is_race = choice.choice(list(_ACTIONS)), choice.random() < 0.5
        raced += is_race
        ending = run_in_child(lambda: _act(around, place, action, f"{seed} {number}", is_race))  # noqa: B023 - called at once
        outcome.injected += 1
        problem = ending.broken_promise()
        if contents(around / "outside") != before:
            problem = "changed what is outside"
        elif is_race and not problem:
            problem = _what_is_broken(around, place)
        if problem:
            outcome.violations.append(
                f"seed {seed!r} {number}, {place}, {action}, {'race' if is_race else 'before'}: {problem}"
            )
        shutil.rmtree(around)
    special = _special_files(folder / "special", outcome, every=max(1, 100 // count))
    outcome.detail = f"{raced} while it ran, {special} with pipes, sockets and devices in the place of files"
    outcome.detail += told_settings(struck, _NO_LINKS)
    return outcome


def _what_is_broken(around: Path, place: Setting) -> str | None:
    """Whatever the race did, the next operations work, and what they save is whole."""

    def act() -> None:
        logging.getLogger("ckpt_lib").setLevel(logging.CRITICAL)
        manager = open_planted(Site(around), place)
        manager.cleanup_checkpoints()
        saved = str(manager.save_checkpoint(model=torch.nn.Linear(2, 2), epoch=3))
        assert manager.validate_checkpoint(saved), "the next save is broken"
        for report in manager.validate_all():
            assert report or report.checkpoint_id == PLANTED_ID, report.message

    ending = run_in_child(act)
    return f"afterwards: {ending.what}" if ending.kind != "returned" else None


def _special_files(folder: Path, outcome: Outcome, every: int) -> int:
    """A pipe, a socket or a device in the place of a file: told, not waited for. Of all cases, every so many."""
    makers: dict[str, Callable[[Path], object]] = {
        "pipe": os.mkfifo,
        "socket": _make_socket,
        "device": lambda path: path.symlink_to("/dev/zero"),
        "folder": lambda path: path.mkdir(),
    }
    names = [(place, name) for place in map(Setting, FORMATS) for name in (_payload_files(place)[0], *_RECORDS)]
    cases = list(itertools.product(makers, names, _ACTIONS))
    chosen = cases[:: every * len(FORMATS) + 1]  # of which every format gets as many
    for number, (kind, (place, name), action) in enumerate(chosen):
        around = folder / str(number)
        _lay_out(around, place)
        path = around / "store" / EXPERIMENT / name
        path.unlink(missing_ok=True)
        makers[kind](path)
        ending = run_in_child(lambda: _act_once(around, place, action))  # noqa: B023 - called at once
        if problem := ending.broken_promise():
            outcome.violations.append(f"{kind} as {name}, {place}, {action}: {problem}")
        shutil.rmtree(around)
    return len(chosen)


def _make_socket(path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(f"/proc/self/fd/{folder}/{path.name}")  # its own path may be too long for one
    os.close(folder)


def _act_once(around: Path, place: Setting, action: str) -> None:
    logging.getLogger("ckpt_lib").setLevel(logging.CRITICAL)
    _ACTIONS[action](open_planted(Site(around), place, max_checkpoints=1))


ROWS = [
    Row(
        number=33,
        fault="symlink swap",
        must_hold="never followed: nothing outside is written, changed or deleted",
        unit="swaps",
        count=200,
        sample=10,
        run=symlink_swaps,
    )
]
