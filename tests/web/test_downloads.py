"""Files of checkpoints through the REST API: whole, in parts, gone on with, and never a damaged byte."""

from __future__ import annotations

import base64
import hashlib
import logging
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.core.manifest import FileEntry
from ckpt_lib.errors import CorruptCheckpointError
from ckpt_lib.store import open_store
from ckpt_lib.stream import StreamDigest
from ckpt_lib.web import ServerSettings
from ckpt_lib.web.delivery import content_disposition, verified_pieces
from tests.helpers import flip_bit
from tests.web.running import served

BEST = "/experiments/digits/checkpoints/best"


def payload_of(config: CheckpointConfig, name: str = "best", experiment: str = "digits") -> Path:
    checkpoint = CheckpointManager(config, experiment).get_checkpoint(name)
    return next(Path(config.checkpoint_dir, experiment).glob(f"{checkpoint.checkpoint_id}*.pt*"))


def digest_header(data: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"


def save_large(config: CheckpointConfig) -> Path:
    """A checkpoint of three chunks."""
    manager = CheckpointManager(config, "large")
    manager.save_state({"model_state_dict": {"weight": torch.randn(5 * 2**20)}}, epoch=1)
    return payload_of(config, "latest", "large")


def test_a_payload_arrives_with_its_digest(client: httpx.Client, config: CheckpointConfig) -> None:
    """The bytes of the store, and headers that prove it; HEAD gives the same headers."""
    data = payload_of(config).read_bytes()
    found = client.get(f"{BEST}/payload")
    assert (found.status_code, found.content) == (200, data)
    headers = found.headers
    assert headers["etag"] == f'"{hashlib.sha256(data).hexdigest()}"'
    assert headers["repr-digest"] == headers["content-digest"] == digest_header(data)
    checkpoint_id = client.get(BEST).json()["checkpoint_id"]
    assert headers["content-disposition"] == f'attachment; filename="{checkpoint_id}.pt"'
    assert client.get(headers["content-location"].removeprefix("/api/v1")).content == data
    head = client.head(f"{BEST}/payload")
    assert (head.status_code, head.content) == (200, b"")
    assert {**head.headers, "date": ""} == {**headers, "date": ""}


def test_what_a_client_has_is_not_sent_again(client: httpx.Client, config: CheckpointConfig) -> None:
    """It names the ETag, perhaps among others; another one is answered with the file."""
    etag = client.get(f"{BEST}/payload").headers["etag"]
    for known in (etag, f'"another", W/{etag}', "*"):
        found = client.get(f"{BEST}/payload", headers={"If-None-Match": known})
        assert (found.status_code, found.content, found.headers["etag"]) == (304, b"", etag)
    found = client.get(f"{BEST}/payload", headers={"If-None-Match": '"another"'})
    assert found.content == payload_of(config).read_bytes()


def test_a_download_goes_on_where_it_ended(client: httpx.Client, config: CheckpointConfig) -> None:
    """By an id, a range is enough; by a name that may move, only with the ETag; of another version, all is sent."""
    data = payload_of(config).read_bytes()
    by_id = f"/experiments/digits/checkpoints/{client.get(BEST).json()['checkpoint_id']}/payload"
    half = len(data) // 2
    rest = client.get(by_id, headers={"Range": f"bytes={half}-"})
    assert (rest.status_code, rest.content) == (206, data[half:])
    assert rest.headers["content-range"] == f"bytes {half}-{len(data) - 1}/{len(data)}"
    assert rest.headers["repr-digest"] == digest_header(data)
    assert "content-digest" not in rest.headers
    assert client.get(by_id, headers={"Range": "bytes=-7"}).content == data[-7:]
    assert client.get(f"{BEST}/payload", headers={"Range": f"bytes={half}-"}).content == data
    same = {"Range": f"bytes={half}-", "If-Range": rest.headers["etag"]}
    assert client.get(f"{BEST}/payload", headers=same).content == data[half:]
    other = {"Range": f"bytes={half}-", "If-Range": '"another"'}
    assert (client.get(by_id, headers=other).status_code, client.get(by_id, headers=other).content) == (200, data)
    behind = client.get(by_id, headers={"Range": f"bytes={len(data)}-"})
    assert (behind.status_code, behind.headers["content-range"]) == (416, f"bytes */{len(data)}")
    assert behind.headers["content-type"] == "application/problem+json"


def test_files_of_a_folder(client: httpx.Client, config: CheckpointConfig) -> None:
    """A payload of several files is listed, and each is downloaded by its name; no other name leads anywhere."""
    several = config.model_copy(update={"format": "safetensors"})
    CheckpointManager(several, "folder").save_checkpoint(model=nn.Linear(2, 2), epoch=1)
    path = "/experiments/folder/checkpoints/latest"
    listed = client.get(f"{path}/files").json()
    assert len(listed["items"]) > 1
    for item in listed["items"]:
        found = client.get(item["href"].removeprefix("/api/v1"))
        assert hashlib.sha256(found.content).hexdigest() == item["sha256"]
        assert len(found.content) == item["size_bytes"]
    refused = client.get(f"{path}/payload")
    assert (refused.status_code, refused.json()["type"]) == (422, "ConfigError")
    for name in ("../../digits/checkpoint_metadata.json", "%2e%2e/x", "/etc/passwd", "none", "%00"):
        assert client.get(f"{path}/files/{name}").status_code in {404, 422}


def test_damage_in_the_first_chunk_is_an_error(client: httpx.Client, config: CheckpointConfig) -> None:
    """A conflict that names the bytes, before anything is sent; so are files that are shorter, longer or gone."""
    payload = payload_of(config)
    data = payload.read_bytes()
    for damaged in (data[:-1], data + b"x", bytes([data[0] ^ 1]) + data[1:], None):
        payload.unlink() if damaged is None else payload.write_bytes(damaged)
        found = client.get(f"{BEST}/payload")
        assert (found.status_code, found.json()["type"]) == (409, "CorruptCheckpointError")
        assert found.json()["damages"]
        assert config.checkpoint_dir not in found.text
    payload.write_bytes(data)
    assert client.get(f"{BEST}/payload").content == data


def test_damage_behind_it_breaks_the_connection(
    client: httpx.Client, config: CheckpointConfig, caplog: pytest.LogCaptureFixture
) -> None:
    """No byte of a damaged chunk is sent: the client gets an error, only whole chunks before it, and may not go on."""
    payload = save_large(config)
    data = payload.read_bytes()
    position = 10 * 2**20
    flip_bit(payload, position)
    received: list[int] = []
    caplog.set_level(logging.ERROR, logger="ckpt_lib")
    with client.stream("GET", "/experiments/large/checkpoints/latest/payload") as found:
        assert found.status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):
            received.extend(byte for piece in found.iter_raw(2**16) for byte in piece)
    assert bytes(received) == data[: len(received)]
    assert len(received) <= 8 * 2**20
    assert "was broken off" in caplog.text
    checkpoint_id = client.get("/experiments/large/checkpoints/latest").json()["checkpoint_id"]
    rest = f"/experiments/large/checkpoints/{checkpoint_id}/payload"
    assert client.get(rest, headers={"Range": f"bytes={len(received)}-"}).status_code == 409
    assert client.get(rest, headers={"Range": "bytes=0-99"}).content == data[:100]
    assert client.get(rest, headers={"Range": "bytes=-100"}).content == data[-100:]


def test_quarantined_and_deleted_ones_are_not_there(client: httpx.Client, config: CheckpointConfig) -> None:
    """They are refused as by every other operation."""
    manager = CheckpointManager(config, "digits")
    for name, hide in (("epoch_1", manager.delete_checkpoint), ("epoch_2", manager.quarantine_checkpoint)):
        checkpoint_id = manager.get_checkpoint(name).checkpoint_id
        shutil.rmtree(Path(config.checkpoint_dir, "digits", "backups"), ignore_errors=True)
        flip_bit(payload_of(config, checkpoint_id), 200)
        hide(checkpoint_id)
        assert client.get(f"/experiments/digits/checkpoints/{checkpoint_id}/payload").status_code == 404


@pytest.mark.parametrize("chunk_size_bytes", [1, 3, 7, 100])
def test_each_chunk_is_compared(tmp_path: Path, chunk_size_bytes: int) -> None:
    """Whatever range is read, its bytes are right, or the damage of a chunk that it touches is found."""
    data = bytes(range(20))
    digest = StreamDigest(chunk_size_bytes)
    digest.update(data)
    entry = FileEntry(name="x", **vars(digest.finish()))
    (tmp_path / "x").write_bytes(data)
    flipped = bytearray(data)
    flipped[10] ^= 1
    (tmp_path / "y").write_bytes(flipped)
    store = open_store(str(tmp_path))
    with store.open_read("x") as sound, store.open_read("y") as damaged:
        for start in range(21):
            for stop in range(start, 21):
                assert b"".join(verified_pieces(sound, entry, start, stop)) == data[start:stop]
                chunks = range(start // chunk_size_bytes, -(-stop // chunk_size_bytes))
                if start < stop and 10 // chunk_size_bytes in chunks:
                    with pytest.raises(CorruptCheckpointError):
                        list(verified_pieces(damaged, entry, start, stop))


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("model.pt", 'attachment; filename="model.pt"'),
        ('a"b.pt', "attachment; filename=\"a_b.pt\"; filename*=UTF-8''a%22b.pt"),
        ("größe.pt", "attachment; filename=\"gr__e.pt\"; filename*=UTF-8''gr%C3%B6%C3%9Fe.pt"),
        ("a/../..\\evil", 'attachment; filename="evil"'),
        ("x\r\nSet-Cookie: a", "attachment; filename=\"x__Set-Cookie__a\"; filename*=UTF-8''x%0D%0ASet-Cookie%3A%20a"),
        ("..", 'attachment; filename="checkpoint"'),
    ],
)
def test_no_name_leaves_its_header(name: str, header: str) -> None:
    """Names of other programs' files are quoted, and hold no folder."""
    assert content_disposition(name) == header
    assert header.isascii()
    assert "\n" not in header


def test_a_token_to_read_is_enough(config: CheckpointConfig, tmp_path: Path, settings: ServerSettings) -> None:
    """Without one, not even the size is told."""
    from ckpt_lib.web.tokens import TokenFile

    text = TokenFile(tmp_path / "tokens.json").create("me", "read")
    guarded = settings.model_copy(update={"tokens_path": tmp_path / "tokens.json", "read_only": True})
    with served(guarded) as client:
        headers: dict[str, Any] = {"Authorization": f"Bearer {text}"}
        assert client.head(f"{BEST}/payload").status_code == 401
        assert client.get(f"{BEST}/payload", headers=headers).content == payload_of(config).read_bytes()
