"""Files that are converted for browsers, on threads of the server."""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ckpt_lib.errors import LimitError
from ckpt_lib.page.conversions import Conversion, Conversions
from ckpt_lib.web import ServerSettings
from ckpt_lib.web import exports as web_exports
from ckpt_lib.web.transfers import Transfers
from tests.web.running import wait_for

WANTED = {"format": "safetensors", "only": "model"}


@pytest.fixture
def transfers(settings: ServerSettings) -> Transfers:
    return Transfers(settings)


@pytest.fixture
def conversions(transfers: Transfers) -> Iterator[Conversions]:
    found = Conversions(transfers)
    yield found
    found.close()


def uploaded(transfers: Transfers, path: Path, *, altered: bool = False) -> str:
    data = path.read_bytes()
    upload = transfers.uploads.create(path.name, len(data), hashlib.sha256(data).hexdigest(), "me")
    transfers.uploads.append(upload, 0, data[:-1] + b"?" if altered else data)
    return upload.upload_id


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A file as scripts save it."""
    torch.save({"model": nn.Linear(3, 3).state_dict(), "epoch": 1}, tmp_path / "script.pt")
    return tmp_path / "script.pt"


def ended(conversions: Conversions, name: str) -> Conversion:
    wait_for(lambda: not conversions.is_running(name))
    found = conversions.get(name)
    assert found is not None
    return found


def test_a_file_is_converted(conversions: Conversions, transfers: Transfers, script: Path) -> None:
    """The result is an export with digests, and the upload stays."""
    upload_id = uploaded(transfers, script)
    found = ended(conversions, conversions.start([upload_id], WANTED, "me"))
    assert (found.state, found.export is not None) == ("succeeded", True)
    assert found.export is not None
    (file,) = found.export.files
    path = transfers.exports.folders.path(found.export.export_id) / "files" / file.name
    assert (file.name, file.sha256) == ("script.safetensors", hashlib.sha256(path.read_bytes()).hexdigest())
    assert load_file(path).keys() == {"weight", "bias"}
    assert transfers.uploads.get(upload_id).name == "script.pt"


def test_what_differs_from_its_digest_is_not_converted(
    conversions: Conversions, transfers: Transfers, settings: ServerSettings, script: Path
) -> None:
    """The reason names the file, and no folder of the server; nothing is left."""
    found = ended(conversions, conversions.start([uploaded(transfers, script, altered=True)], WANTED, "me"))
    assert (found.state, "'script.pt' differs from its digest" in found.reason) == ("failed", True)
    (script.parent / "text.pt").write_text("no checkpoint")
    found = ended(conversions, conversions.start([uploaded(transfers, script.parent / "text.pt")], WANTED, "me"))
    assert (found.state, str(settings.transfers_path()) in found.reason) == ("failed", False)
    assert transfers.exports.folders.names() == transfers.uploads.imports.names() == []


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Semaphore, threading.Event]]:
    """Conversions that stop in the middle: a permit for each that has begun, and the event that lets all go on."""
    begun, may_go_on = threading.Semaphore(0), threading.Event()

    def convert(_: Path, place: str, *, progress: Any, **options: Any) -> None:
        Path(place).mkdir()
        Path(place, "half.safetensors").write_bytes(b"half")
        begun.release()
        assert may_go_on.wait(10)
        progress(1)

    monkeypatch.setattr(web_exports, "convert_checkpoint", convert)
    yield begun, may_go_on
    may_go_on.set()


def test_a_conversion_is_cancelled(
    conversions: Conversions,
    transfers: Transfers,
    script: Path,
    held: tuple[threading.Semaphore, threading.Event],
) -> None:
    """One at work ends at its next step, one that waits for its turn at once; their files go."""
    begun, may_go_on = held
    upload_id = uploaded(transfers, script)
    at_work = [conversions.start([upload_id], WANTED, "me") for _ in range(2)]
    assert begun.acquire(timeout=10)
    assert begun.acquire(timeout=10)
    waiting = [conversions.start([upload_id], WANTED, "me") for _ in range(3)]
    for name in (*at_work, *waiting):
        conversions.cancel(name)
    assert {ended(conversions, name).state for name in waiting} == {"cancelled"}
    assert all(map(conversions.is_running, at_work))
    may_go_on.set()
    assert {ended(conversions, name).state for name in at_work} == {"cancelled"}
    assert transfers.exports.folders.names() == transfers.uploads.imports.names() == []
    assert conversions.get("0" * 32) is None


@pytest.mark.usefixtures("held")
def test_no_token_holds_all_places(conversions: Conversions, transfers: Transfers, script: Path) -> None:
    """One gets half of them, and each that ends gives its place back."""
    upload_id = uploaded(transfers, script)
    started = [conversions.start([upload_id], WANTED, "me") for _ in range(10)]
    with pytest.raises(LimitError, match="at most 20 in all, and 10 of one token"):
        conversions.start([upload_id], WANTED, "me")
    conversions.start([upload_id], WANTED, "another")
    conversions.cancel(started[-1])
    ended(conversions, started[-1])
    conversions.start([upload_id], WANTED, "me")
    conversions.close()


def test_a_small_file_does_not_become_a_large_one(settings: ServerSettings, tmp_path: Path) -> None:
    """A tensor of one stored number is as large as its shape says: it ends at the limit, and leaves nothing."""
    torch.save({"model": {"w": torch.zeros(1).expand(4 * 2**20)}}, tmp_path / "script.pt")
    transfers = Transfers(settings.model_copy(update={"max_transfer_bytes": 4 * 2**20}))
    conversions = Conversions(transfers)
    found = ended(conversions, conversions.start([uploaded(transfers, tmp_path / "script.pt")], WANTED, "me"))
    assert (found.state, "larger than the server allows" in found.reason) == ("failed", True)
    assert found.done_bytes < 2**24
    assert transfers.exports.folders.names() == []


def test_a_conversion_leaves_room_on_the_disk(
    transfers: Transfers, conversions: Conversions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that becomes larger than its file leaves a tenth of what was free."""
    torch.save({"model": {"w": torch.zeros(1).expand(4 * 2**20)}}, tmp_path / "script.pt")
    upload_id = uploaded(transfers, tmp_path / "script.pt")
    free = iter([2**40, 2**40, *[2**30] * 100])
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=next(free)))
    found = ended(conversions, conversions.start([upload_id], WANTED, "me"))
    assert (found.state, "room on its disk" in found.reason) == ("failed", True)
