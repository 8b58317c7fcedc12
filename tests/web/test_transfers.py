"""Uploads that are interrupted and imported, and exports that are downloaded, on a real server."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager, inspect_checkpoint
from ckpt_lib.errors import (
    ExportNotFoundError,
    LimitError,
    StorePermissionError,
    UploadConflictError,
    UploadNotFoundError,
)
from ckpt_lib.web import ServerSettings
from ckpt_lib.web.tokens import TokenFile
from ckpt_lib.web.transfers import Transfers
from ckpt_lib.web.uploads import Upload
from tests.cli.running import on_posix
from tests.web.running import ended, served, wait_for

JOBS = "/experiments/digits/jobs"
TYPE = {"Content-Type": "application/offset+octet-stream"}


class Evil:
    """Makes a folder where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def begin(client: httpx.Client, data: bytes, name: str = "model.pt", **given: str) -> httpx.Response:
    headers = {
        "Tus-Resumable": "1.0.0",
        "Upload-Length": str(len(data)),
        "Upload-Metadata": f"filename {base64.b64encode(name.encode()).decode()}",
        "Repr-Digest": f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:",
    }
    return client.post("/uploads", headers=headers | given)


def place_of(created: httpx.Response) -> str:
    assert created.status_code == 201, created.text
    return created.headers["location"].removeprefix("/api/v1")


def add(client: httpx.Client, place: str, data: bytes, offset: int = 0) -> httpx.Response:
    return client.patch(place, content=data, headers={**TYPE, "Upload-Offset": str(offset)})


def upload(client: httpx.Client, data: bytes, name: str = "model.pt") -> str:
    created = begin(client, data, name)
    assert add(client, place_of(created), data).status_code == 204
    return str(created.json()["upload_id"])


def offset_of(client: httpx.Client, place: str) -> int:
    return int(client.head(place).headers["upload-offset"])


def of_torch(tmp_path: Path, width: int = 3) -> bytes:
    """A file as scripts write it."""
    state = {"model": nn.Linear(width, width).state_dict(), "epoch": 7}
    torch.save(state, tmp_path / "script.pt")
    return (tmp_path / "script.pt").read_bytes()


def imported(client: httpx.Client, *upload_ids: str, experiment: str = "digits", **more: Any) -> Any:
    body = {"operation": "import", "uploads": upload_ids, **more}
    return ended(client, client.post(f"/experiments/{experiment}/jobs", json=body))


def kept(settings: ServerSettings) -> list[Path]:
    """Every file that the server keeps for transfers."""
    return [path for path in settings.transfers_path().rglob("*") if path.is_file()]


# --- uploads ---


def test_an_upload_goes_on_where_it_ended(client: httpx.Client, settings: ServerSettings) -> None:
    """In pieces of any size; a piece at another place is refused with the place, and nothing is lost."""
    data = os.urandom(3 * 2**20 + 5)
    place = place_of(begin(client, data))
    start = 0
    for stop in (1, 2**20, 2**20 + 7, len(data)):
        for wrong in {0, start + 1, len(data)} - {start}:
            refused = add(client, place, data[wrong : wrong + 1], wrong)
            assert (refused.status_code, refused.json()["expected"]) == (409, str(start))
        answer = add(client, place, data[start:stop], start)
        assert (answer.status_code, answer.headers["upload-offset"]) == (204, str(stop))
        head = client.head(place)
        assert (head.headers["upload-offset"], head.headers["upload-length"]) == (str(stop), str(len(data)))
        start = stop
    assert client.get(place).json()["offset_bytes"] == len(data)
    (stored,) = (path for path in kept(settings) if path.name == "data")
    assert stored.read_bytes() == data


def test_a_connection_that_breaks_keeps_what_arrived(
    client: httpx.Client, settings: ServerSettings, tmp_path: Path
) -> None:
    """A client that was cut off asks for the offset and sends the rest, until all of it is there."""
    data = of_torch(tmp_path, width=2**10)
    created = begin(client, data)
    place = place_of(created)
    url = client.base_url.join(f".{place}")
    half = len(data) // 2
    with socket.create_connection((url.host, url.port)) as connection:
        head = f"PATCH {url.path} HTTP/1.1\r\nHost: {url.host}\r\nUpload-Offset: 0\r\nContent-Length: {len(data)}\r\n"
        connection.sendall(f"{head}Content-Type: {TYPE['Content-Type']}\r\n\r\n".encode() + data[:half])
        wait_for(lambda: offset_of(client, place) > 0)
    assert 0 < offset_of(client, place) <= half
    while (offset := offset_of(client, place)) < len(data):
        assert add(client, place, data[offset:], offset).status_code in {204, 409}  # the first may still be writing
    job = imported(client, created.json()["upload_id"])
    assert job["state"] == "succeeded", job
    assert kept(settings) == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Upload-Metadata": "filename !"}, 422),
        ({"Upload-Metadata": "name eA=="}, 422),
        ({"Repr-Digest": "sha-512=:eA==:"}, 422),
        ({"Repr-Digest": "sha-256=:eA==:"}, 422),
        ({"Upload-Length": "-1"}, 422),
        ({"Upload-Length": "many"}, 422),
        ({"Upload-Length": str(2**62)}, 413),
        ({"Upload-Length": str(2**39)}, 507),
        ({"Tus-Resumable": "0.2.0"}, 412),
    ],
)
def test_what_cannot_be_uploaded_is_refused(
    client: httpx.Client, settings: ServerSettings, headers: Mapping[str, str], status: int
) -> None:
    """Before anything is written, as a problem that says what is expected."""
    refused = begin(client, b"x", **headers)
    assert (refused.status_code, refused.headers["content-type"]) == (status, "application/problem+json")
    assert kept(settings) == []


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../x", "a/../../x", "a//b", ".ckpt-tmp/lock", "a\\b", "a\n", "a" * 201, "ä", "a/" * 9]
)
def test_names_lead_nowhere_else(client: httpx.Client, settings: ServerSettings, name: str) -> None:
    """A name is one of a file within the folder of the import."""
    assert begin(client, b"x", name).status_code == 422
    assert kept(settings) == []


def test_an_upload_belongs_to_its_token(settings: ServerSettings, tmp_path: Path) -> None:
    """Another one can neither look at it, add to it, remove nor import it, though jobs show its id to all who read."""
    tokens = TokenFile(tmp_path / "tokens.json")
    mine, another = (tokens.create(name, "write") for name in ("me", "another"))
    with served(settings.model_copy(update={"tokens_path": tmp_path / "tokens.json"})) as client:
        client.headers["Authorization"] = f"Bearer {mine}"
        created = begin(client, b"12345")
        place = place_of(created)
        client.headers["Authorization"] = f"Bearer {another}"
        answers = [client.head(place), client.get(place), add(client, place, b"12345"), client.delete(place)]
        work = {"operation": "import", "uploads": [created.json()["upload_id"]]}
        answers.append(client.post(JOBS, json=work))
        assert [answer.status_code for answer in answers] == [404] * 5
        client.headers["Authorization"] = f"Bearer {mine}"
        assert offset_of(client, place) == 0
        assert client.delete(place).status_code == 204


def test_no_upload_becomes_larger_than_it_said(client: httpx.Client) -> None:
    """With and without a Content-Length; other types of bodies and unknown uploads are refused."""
    place = place_of(begin(client, b"12345"))
    assert add(client, place, b"123456").status_code == 413

    def pieces() -> Any:
        for _ in range(64):
            yield b"x" * 2**16

    streamed = client.patch(place, content=pieces(), headers={**TYPE, "Upload-Offset": "0"})
    assert streamed.status_code == 413
    assert client.patch(place, content=b"1", headers={"Upload-Offset": "0"}).status_code == 415
    assert client.patch(place, content=b"1", headers=TYPE).status_code == 422
    assert offset_of(client, place) <= 5
    assert client.delete(place).status_code == 204
    for answer in (client.head(place), client.get(place), client.delete(place), add(client, place, b"1")):
        assert answer.status_code == 404
    assert client.get("/uploads/..%2f..").status_code in {404, 422}
    options = client.options("/uploads")
    assert (options.status_code, options.headers["tus-version"]) == (204, "1.0.0")


def test_an_upload_belongs_to_the_token_that_began_it(settings: ServerSettings, tmp_path: Path) -> None:
    """Jobs show which uploads they import; to another token that may write, they are not there."""
    texts = {name: TokenFile(tmp_path / "tokens.json").create(name, "delete") for name in ("mine", "other")}
    data = of_torch(tmp_path)
    with served(settings.model_copy(update={"tokens_path": tmp_path / "tokens.json"})) as client:
        mine, other = ({"Authorization": f"Bearer {texts[name]}"} for name in ("mine", "other"))
        client.headers.update(mine)
        upload_id = upload(client, data)
        place, body = f"/uploads/{upload_id}", {"operation": "import", "uploads": [upload_id]}
        for answer in (
            client.get(place, headers=other),
            client.head(place, headers=other),
            client.delete(place, headers=other),
            client.patch(place, content=b"", headers={**other, **TYPE, "Upload-Offset": str(len(data))}),
            client.post(JOBS, json=body, headers=other),
        ):
            assert answer.status_code == 404
        begun = begin(client, data).json()["upload_id"]
        refused = client.post(JOBS, json={"operation": "import", "uploads": [begun]}, headers=other)
        assert (refused.status_code, "model.pt" in refused.text) == (404, False)
        assert client.get(place).json()["offset_bytes"] == len(data)
        assert imported(client, upload_id)["state"] == "succeeded"


def test_an_export_is_removed_by_the_token_that_asked_for_it(settings: ServerSettings, tmp_path: Path) -> None:
    """Jobs show its id to everybody who may read, and they may download it; no more."""
    texts = {name: TokenFile(tmp_path / "tokens.json").create(name, "read") for name in ("mine", "other")}
    with served(settings.model_copy(update={"tokens_path": tmp_path / "tokens.json"})) as client:
        mine, other = ({"Authorization": f"Bearer {texts[name]}"} for name in ("mine", "other"))
        client.headers.update(mine)
        job = ended(client, client.post(JOBS, json={"operation": "export", "names": ["best"]}))
        place = f"/exports/{job['result'][0]['result']['export_id']}"
        assert client.get(place, headers=other).status_code == 200
        assert client.delete(place, headers=other).status_code == 404
        assert client.get(place).status_code == 200
        assert client.delete(place).status_code == 204


def test_requests_at_once_mix_nothing_up(settings: ServerSettings) -> None:
    """Whoever of several clients is faster: each byte is added once, in its place."""
    data = os.urandom(2**16)
    uploads = Transfers(settings).uploads
    started = uploads.create("x", len(data), "", "me")

    def send(size: int) -> None:
        while (position := uploads.offset_bytes(started)) < len(data):
            with suppress(UploadConflictError):
                uploads.append(started, position, data[position : position + size])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(send, range(100, 900, 100)))
    (stored,) = (path for path in kept(settings) if path.name == "data")
    assert stored.read_bytes() == data


# --- imports ---


def test_a_file_of_another_program_is_imported(
    client: httpx.Client, config: CheckpointConfig, settings: ServerSettings, tmp_path: Path
) -> None:
    """As the newest, once, without a trace of the server's folders; its upload goes."""
    data = of_torch(tmp_path)
    job = imported(client, upload(client, data, "script.pt"))
    assert job["state"] == "succeeded", job
    (outcome,) = job["result"]
    assert (outcome["result"]["result"], outcome["result"]["epoch"]) == ("imported", 7)
    latest = CheckpointManager(config, "digits").get_checkpoint("latest")
    assert (latest.checkpoint_id, latest.epoch) == (outcome["checkpoint_id"], 7)
    assert latest.description.startswith("Imported from script.pt:")
    assert str(tmp_path) not in client.get("/experiments/digits/checkpoints/latest").text
    assert kept(settings) == []
    again = imported(client, upload(client, data, "script.pt"))
    assert again["result"][0]["checkpoint_id"] == latest.checkpoint_id
    assert again["result"][0]["result"]["result"] == "already there"


def test_an_export_goes_to_another_experiment(
    client: httpx.Client, config: CheckpointConfig, settings: ServerSettings
) -> None:
    """Payload and manifest are downloaded, uploaded and imported: the same checkpoint in a new experiment."""
    job = ended(client, client.post(JOBS, json={"operation": "export", "names": ["best"]}))
    assert job["state"] == "succeeded", job
    export = client.get(f"/exports/{job['result'][0]['result']['export_id']}").json()
    assert len(export["items"]) == 2
    uploads = []
    for item in export["items"]:
        data = client.get(item["href"].removeprefix("/api/v1")).content
        assert hashlib.sha256(data).hexdigest() == item["sha256"]
        uploads.append(upload(client, data, item["name"]))
    body = {"operation": "import", "uploads": uploads}
    assert client.post("/experiments/fresh/jobs", json=body).status_code == 404
    job = imported(client, *uploads, experiment="fresh", new_experiment=True)
    assert job["state"] == "succeeded", job
    old, new = (CheckpointManager(config, name).get_checkpoint("best") for name in ("digits", "fresh"))
    assert (new.checksum, new.metrics, new.epoch) == (old.checksum, old.metrics, old.epoch)
    assert len(client.get("/experiments").json()["items"]) == 3


def test_each_checkpoint_of_a_folder_is_imported(
    client: httpx.Client, config: CheckpointConfig, settings: ServerSettings, tmp_path: Path
) -> None:
    """By epoch and, if asked, compressed, with an outcome for each file: what it is, and why it was not taken."""
    files = {}
    for epoch in (2, 1):
        torch.save({"model": nn.Linear(3, 3).state_dict(), "epoch": epoch}, tmp_path / "x.pt")
        files[f"old/runs/e{epoch}.pt"] = (tmp_path / "x.pt").read_bytes()
    files |= {"old/cut.pt": files["old/runs/e1.pt"][:700], "old/notes.txt": b"nothing"}
    ids = [upload(client, data, name) for name, data in files.items()]
    job = imported(client, *ids, experiment="old", new_experiment=True, tree=True, compression=True)
    assert (job["state"], job["problem"]["detail"][:24]) == ("failed", "1 of 4 checkpoints faile")
    found = {item["result"]["path"]: (item["result"]["result"], item["checkpoint_id"]) for item in job["result"]}
    assert {path: result for path, (result, _) in found.items()} == {
        "runs/e1.pt": "imported",
        "runs/e2.pt": "imported",
        "cut.pt": "damaged",
        "notes.txt": "no checkpoint",
    }
    manager = CheckpointManager(config, "old")
    assert [item.epoch for item in manager.list_checkpoints()] == [1, 2]
    assert manager.checkpoint_ids() == [found[f"runs/e{epoch}.pt"][1] for epoch in (1, 2)]
    assert manager.get_checkpoint("latest").description.startswith("Imported from old/runs/e2.pt:")
    stored = inspect_checkpoint(Path(config.checkpoint_dir, "old", f"{manager.checkpoint_ids()[0]}.json")).checkpoint
    assert stored is not None
    assert stored.format == "torch+planes"
    assert str(tmp_path) not in str(job)
    assert kept(settings) == []


def test_nothing_is_imported_that_is_not_whole(
    client: httpx.Client, config: CheckpointConfig, settings: ServerSettings, tmp_path: Path
) -> None:
    """Incomplete, altered, unsafe or no checkpoint at all: a problem, an unchanged store, and the upload stays."""
    before = CheckpointManager(config, "digits").checkpoint_ids()
    data = of_torch(tmp_path)
    begun = begin(client, data).json()["upload_id"]
    body = {"operation": "import", "uploads": [begun]}
    assert client.post(JOBS, json=body).json()["detail"] == "the upload of 'model.pt' is not complete"
    assert client.post(JOBS, json={"operation": "import", "uploads": ["0" * 32]}).status_code == 404
    assert client.post(JOBS, json={"operation": "import", "uploads": []}).status_code == 422
    repeated = client.post(JOBS, json={"operation": "import", "uploads": ["0" * 32] * 2})
    assert (repeated.status_code, repeated.json()["detail"]) == (422, "an upload is named twice")
    altered = begin(client, data)
    add(client, place_of(altered), data[:-1] + b"?")
    job = imported(client, altered.json()["upload_id"])
    assert (job["state"], job["problem"]["type"]) == ("failed", "UploadConflictError")
    twice = [upload(client, data), upload(client, data)]
    assert imported(client, *twice)["problem"]["type"] == "UploadConflictError"
    for content in (b"", b"no checkpoint"):
        job = imported(client, upload(client, content))
        assert (job["state"], job["result"]) == ("failed", None)
        assert str(tmp_path) not in str(job)
    assert CheckpointManager(config, "digits").checkpoint_ids() == before
    assert not [path for path in kept(settings) if "imports" in path.parts]
    assert len(list((settings.transfers_path() / "uploads").iterdir())) == 6


def test_no_code_of_an_upload_runs(client: httpx.Client, tmp_path: Path) -> None:
    """What would need it is left out, and named."""
    torch.save({"model": nn.Linear(1, 1).state_dict(), "more": Evil(tmp_path / "evil")}, tmp_path / "x.pt")
    job = imported(client, upload(client, (tmp_path / "x.pt").read_bytes()))
    assert job["state"] == "succeeded", job
    assert any("more" in sentence for sentence in job["result"][0]["result"]["left_out"])
    assert not (tmp_path / "evil").exists()


@on_posix
def test_a_kill_leaves_nothing_half_imported(
    settings: ServerSettings, config: CheckpointConfig, tmp_path: Path
) -> None:
    """The job is interrupted, the store as before, the upload whole; the same import succeeds."""
    before = CheckpointManager(config, "digits").checkpoint_ids()
    program = (
        "import sys, time\n"
        "import ckpt_lib.maintenance.importing.foreign_copies as copies\n"
        "copies.require_unchanged = lambda *given: (print('written', flush=True), time.sleep(60))\n"
        "from ckpt_lib.web import ServerSettings; from ckpt_lib.web.server import run\n"
        "settings = ServerSettings.model_validate_json(sys.argv[1])\n"
        "run(settings, announce=lambda url: print(url + '/api/v1', flush=True))"
    )
    given = settings.model_copy(update={"port": 0}).model_dump_json()
    with subprocess.Popen([sys.executable, "-c", program, given], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = re.search(r"http://\S+", process.stdout.readline())
        assert url is not None
        with httpx.Client(base_url=url[0], trust_env=False) as client:
            upload_id = upload(client, of_torch(tmp_path))
            started = client.post(JOBS, json={"operation": "import", "uploads": [upload_id]})
            assert process.stdout.readline() == "written\n"
        process.send_signal(signal.SIGKILL)
    with served(settings) as client:
        assert ended(client, started)["state"] == "interrupted"
        assert CheckpointManager(config, "digits").checkpoint_ids() == before
        assert imported(client, upload_id)["state"] == "succeeded"
        assert len(CheckpointManager(config, "digits").checkpoint_ids()) == len(before) + 1


# --- exports ---


def test_weights_of_the_best_in_bf16(client: httpx.Client, config: CheckpointConfig, tmp_path: Path) -> None:
    """One job and one download, in parts as well."""
    wanted = {"operation": "export", "names": ["best"], "format": "safetensors", "dtype": "bf16", "only": "model"}
    job = ended(client, client.post(JOBS, json=wanted))
    assert job["state"] == "succeeded", job
    result = job["result"][0]["result"]
    (file,) = client.get(f"/exports/{result['export_id']}").json()["items"]
    assert [file["name"]] == [item["name"] for item in result["files"]]
    path = file["href"].removeprefix("/api/v1")
    data = client.get(path).content
    rest = client.get(path, headers={"Range": "bytes=100-", "If-Range": f'"{file["sha256"]}"'})
    assert data[:100] + rest.content == data
    (tmp_path / "x.safetensors").write_bytes(data)
    assert {str(tensor.dtype) for tensor in load_file(tmp_path / "x.safetensors").values()} == {"torch.bfloat16"}
    assert client.get(f"/exports/{result['export_id']}/files/none").status_code == 404
    assert client.delete(f"/exports/{result['export_id']}").status_code == 204
    assert client.get(file["href"].removeprefix("/api/v1")).status_code == 404
    assert client.delete(f"/exports/{result['export_id']}").status_code == 404
    assert client.get(f"/exports/{'0' * 32}").status_code == 404


def test_a_damaged_checkpoint_is_not_exported(
    client: httpx.Client, config: CheckpointConfig, settings: ServerSettings
) -> None:
    """The job fails with the damage, and leaves no file; options that cannot work are refused at once."""
    checkpoint_id = client.get("/experiments/digits/checkpoints/best").json()["checkpoint_id"]
    payload = Path(config.checkpoint_dir, "digits", f"{checkpoint_id}.pt")
    payload.write_bytes(payload.read_bytes()[:-1])
    for options in ({}, {"format": "safetensors", "only": "model"}):
        job = ended(client, client.post(JOBS, json={"operation": "export", "names": ["best"], **options}))
        assert (job["state"], job["result"][0]["problem"]["type"]) == ("failed", "CorruptCheckpointError")
    shutil.rmtree(Path(config.checkpoint_dir, "digits", "backups"))
    CheckpointManager(config, "digits").quarantine_checkpoint(checkpoint_id)
    job = ended(client, client.post(JOBS, json={"operation": "export", "names": [checkpoint_id]}))
    assert job["result"][0]["problem"]["type"] == "CheckpointNotFoundError"
    for options in ({"format": "zip"}, {"dtype": "int3"}, {"shard_size": "-1"}, {"only": "optimizer"}):
        body = {"operation": "export", "names": ["latest"], **options}
        assert client.post(JOBS, json=body).status_code == 422
    assert kept(settings) == []


# --- what goes by itself ---


def test_old_transfers_go(settings: ServerSettings, config: CheckpointConfig, tmp_path: Path) -> None:
    """Whatever was not written to for a day, and what is left of a removal; everything else stays."""
    transfers = Transfers(settings)
    with served(settings) as client:
        old, new = upload(client, b"old"), upload(client, b"new")
        job = ended(client, client.post(JOBS, json={"operation": "export", "names": ["best"]}))
        export_id = job["result"][0]["result"]["export_id"]
    for folder in (transfers.uploads.folders.path(old), transfers.exports.folders.path(export_id)):
        for path in (folder, *folder.rglob("*")):
            os.utime(path, (0, time.time() - settings.transfer_seconds - 1))
    (settings.transfers_path() / "uploads" / ".going-1").mkdir()
    with served(settings) as client:
        wait_for(lambda: client.get(f"/exports/{export_id}").status_code == 404)
        assert client.get(f"/uploads/{old}").status_code == 404
        assert client.get(f"/uploads/{new}").status_code == 200
    assert [path.name for path in (settings.transfers_path() / "uploads").iterdir()] == [new]


def test_transfers_are_limited_and_private(settings: ServerSettings) -> None:
    """Together they take no more than the setting, and only the user of the server reads them."""
    with served(settings.model_copy(update={"max_transfer_bytes": 1_000})) as client:
        assert begin(client, b"x" * 1_001).status_code == 413
        upload(client, b"x" * 600)
        refused = begin(client, b"x" * 600)
        assert (refused.status_code, refused.json()["type"]) == (507, "StorageFullError")
        job = ended(client, client.post(JOBS, json={"operation": "export", "names": ["best"]}))
        assert job["result"][0]["problem"]["type"] == "StorageFullError"
    for path in (settings.transfers_path() / "uploads").iterdir():
        assert path.stat().st_mode & 0o77 == 0


def test_there_is_room_for_what_was_promised(settings: ServerSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uploads that have begun keep their room on the disk, however many begin at once."""
    with served(settings) as client:
        free_bytes = shutil.disk_usage(settings.config.checkpoint_dir)._replace(free=1_000)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: free_bytes)
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: begin(client, b"x" * 600), range(8)))
        assert sorted(answer.status_code for answer in answers) == [201, *[507] * 7]
        refused = next(answer for answer in answers if answer.status_code == 507)
        assert refused.json()["got"] == "1000 B free, of which 600 B are for others"
        monkeypatch.setattr(shutil, "disk_usage", lambda _: free_bytes._replace(free=2_000))
        assert begin(client, b"x" * 600).status_code == 201


def test_the_number_of_uploads_is_limited(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """One too many is told when to try again."""
    monkeypatch.setattr("ckpt_lib.web.uploads.MOST_UPLOADS", 1)
    assert begin(client, b"x").status_code == 201
    refused = begin(client, b"x")
    assert (refused.status_code, refused.json()["type"]) == (429, "LimitError")
    assert refused.headers["retry-after"] == "60"


def test_no_token_begins_all_uploads(settings: ServerSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets half of them; what is removed counts no more. Each record is read once, however many begin."""
    monkeypatch.setattr("ckpt_lib.web.uploads.MOST_UPLOADS", 6)
    uploads = Transfers(settings).uploads
    get, read = uploads.get, []

    def noted(upload_id: str) -> Upload:
        read.append(upload_id)
        return get(upload_id)

    monkeypatch.setattr(uploads, "get", noted)
    begun = [uploads.create("model.pt", 1, "0" * 64, "me") for _ in range(3)]
    with pytest.raises(LimitError, match="3 of one token"):
        uploads.create("model.pt", 1, "0" * 64, "me")
    uploads.create("model.pt", 1, "0" * 64, "other")
    assert sorted(read) == sorted(upload.upload_id for upload in begun)
    uploads.remove(begun[0].upload_id)
    uploads.create("model.pt", 1, "0" * 64, "me")


def test_what_is_deleted_meanwhile_is_not_there(settings: ServerSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upload or export that goes while it is asked for is not found, as it would be a moment later."""
    uploads = Transfers(settings).uploads
    found = uploads.create("model.pt", 3, "0" * 64, "me")
    uploads.append(found, 0, b"x")
    uploads.remove(found.upload_id)
    for ask in (
        lambda: uploads.append(found, 1, b"x"),
        lambda: uploads.sync(found),
        lambda: uploads.expires_at(found),
        lambda: uploads._verify(found, lambda _: None),
        lambda: Transfers(settings).exports.expires_at("0" * 32),
    ):
        with pytest.raises((UploadNotFoundError, ExportNotFoundError)):
            ask()


def test_a_folder_that_others_have_made(settings: ServerSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where others may enter it, they cannot any more; where it is theirs, nothing is put into it."""
    folder = settings.transfers_path() / "uploads"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    uploads = Transfers(settings).uploads
    uploads.create("model.pt", 3, "0" * 64, "me")
    assert folder.stat().st_mode & 0o77 == 0
    user_id = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user_id + 1)
    with pytest.raises(StorePermissionError):
        uploads.create("model.pt", 3, "0" * 64, "me")
