"""Jobs that set aside, thin, clear up, empty the trash and choose the monitor, on a real store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.web import ServerSettings
from ckpt_lib.web.seen import findings_fingerprint, trash_of
from ckpt_lib.web.tokens import SCOPES, TokenFile
from tests.helpers import flip_bit, leave_unfinished
from tests.web.running import ended, served

JOBS = "/experiments/digits/jobs"


@pytest.fixture
def manager(config: CheckpointConfig) -> CheckpointManager:
    """The manager of three checkpoints, the newest of which has an optimizer."""
    found = CheckpointManager(config, "digits")
    model = nn.Linear(16, 16)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 16)).sum().backward()
    optimizer.step()
    found.save_checkpoint(model=model, optimizer=optimizer, epoch=4, metrics={"val_loss": 1.5, "accuracy": 0.5})
    return found


def done(client: httpx.Client, operation: str, **given: Any) -> Any:
    return ended(client, client.post(JOBS, json={"operation": operation, **given}))


def outcome(client: httpx.Client, operation: str, **given: Any) -> Any:
    """The result of a job that has succeeded."""
    job = done(client, operation, **given)
    assert job["state"] == "succeeded", job
    return job["result"][0]["result"]


def test_set_aside(client: httpx.Client, config: CheckpointConfig, manager: CheckpointManager) -> None:
    """What no backup can repair is set aside, what one can is repaired, and an intact one stays."""
    lost, repairable, intact = (manager.get_checkpoint(f"epoch_{epoch}").checkpoint_id for epoch in (1, 2, 3))
    manager.delete_backup(lost)
    for checkpoint_id in (lost, repairable):
        flip_bit(Path(config.checkpoint_dir, "digits", f"{checkpoint_id}.pt"), 300)
    assert outcome(client, "quarantine", names=[lost])["is_quarantined"]
    assert not outcome(client, "quarantine", names=[repairable])["is_quarantined"]
    assert done(client, "quarantine", names=[intact])["problem"]["type"] == "ProtectedCheckpointError"
    assert [item.checkpoint_id for item in manager.list_quarantined()] == [lost]
    assert manager.validate_checkpoint(repairable)


def test_thin_and_back(client: httpx.Client, manager: CheckpointManager) -> None:
    """The weights stay, the rest goes to the trash and comes back from there."""
    whole = manager.get_checkpoint("epoch_4").file_size
    thinned = outcome(client, "thin", names=["epoch_4"])
    assert (thinned["is_thinned"], thinned["dropped_bytes"] > 0) == (True, True)
    assert manager.get_checkpoint("epoch_4").is_thinned
    assert not outcome(client, "thin", names=["epoch_4"], undo=True)["is_thinned"]
    assert manager.get_checkpoint("epoch_4").file_size == whole
    assert client.post(JOBS, json={"operation": "thin", "names": []}).status_code == 422


def test_the_trash_that_was_shown_is_emptied(client: httpx.Client, manager: CheckpointManager) -> None:
    """Of a trash that has changed since, nothing goes."""
    first, second = (manager.get_checkpoint(f"epoch_{epoch}").checkpoint_id for epoch in (1, 3))
    manager.delete_checkpoint(first)
    manager.thin_checkpoint("epoch_4")
    shown = trash_of(manager)
    assert [item.is_part for item in shown.items] in ([True, False], [False, True])
    manager.delete_checkpoint(second)
    job = done(client, "empty_trash", fingerprint=shown.fingerprint)
    assert (job["state"], job["problem"]["type"]) == ("failed", "ProtectedCheckpointError")
    assert {item.checkpoint_id for item in manager.list_deleted()} == {first, second}
    now = trash_of(manager)
    emptied = outcome(client, "empty_trash", fingerprint=now.fingerprint)
    assert (emptied["deleted_ids"], emptied["freed_bytes"]) == ([first, second], now.size_bytes)
    assert (manager.list_deleted(), manager.dropped_bytes()) == ([], {})


def test_what_was_shown_is_fixed(client: httpx.Client, config: CheckpointConfig, manager: CheckpointManager) -> None:
    """Leftovers go and a missing file comes back; if anything else is to be done by now, nothing is."""
    folder = Path(config.checkpoint_dir, "digits")
    unfinished = leave_unfinished(folder)
    shown = findings_fingerprint(manager.doctor())
    lost = manager.get_checkpoint("epoch_3").checkpoint_id
    (folder / f"{lost}.pt").unlink()
    assert done(client, "doctor", fingerprint=shown)["problem"]["type"] == "ProtectedCheckpointError"
    assert list(folder.glob(f"{unfinished}*"))
    fixed = outcome(client, "doctor", fingerprint=findings_fingerprint(manager.doctor()))
    assert ({item["name"] for item in fixed["done"]}, fixed["problem_count"]) == ({unfinished, lost}, 0)
    assert not list(folder.glob(f"{unfinished}*"))
    assert manager.validate_checkpoint(lost)


def test_without_a_fingerprint_a_check_is_made_once(
    client: httpx.Client, manager: CheckpointManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is nothing to compare, and a check reads for a while."""
    assert manager.checkpoint_ids()
    checks: list[bool] = []
    doctor = CheckpointManager.doctor

    def counted(self: CheckpointManager, *, fix: bool = False, **options: Any) -> Any:
        checks.append(fix)
        return doctor(self, fix=fix, **options)

    monkeypatch.setattr(CheckpointManager, "doctor", counted)
    outcome(client, "doctor")
    assert checks == [True]


def test_choose_the_monitor(client: httpx.Client, config: CheckpointConfig, manager: CheckpointManager) -> None:
    """The best is another one then; a metric that none has recorded is refused."""
    best = outcome(client, "monitor", metric="accuracy", mode="max")["best_checkpoint"]
    assert best == manager.get_checkpoint("epoch_4").checkpoint_id
    assert CheckpointManager(config, "digits").monitor.metric == "accuracy"
    assert done(client, "monitor", metric="nothing", mode="min")["problem"]["type"] == "UnknownMetricError"
    assert client.post(JOBS, json={"operation": "monitor", "metric": "accuracy", "mode": "up"}).status_code == 422


@pytest.mark.parametrize(
    ("work", "needed"),
    [
        ({"operation": "quarantine", "names": ["latest"]}, "write"),
        ({"operation": "monitor", "metric": "val_loss", "mode": "min"}, "write"),
        ({"operation": "thin", "names": ["latest"], "undo": True}, "write"),
        ({"operation": "thin", "names": ["latest"]}, "delete"),
        ({"operation": "empty_trash"}, "delete"),
        ({"operation": "doctor"}, "delete"),
    ],
)
def test_scopes(config: CheckpointConfig, tmp_path: Path, work: dict[str, Any], needed: str) -> None:
    """Each needs the scope of what it takes away or changes, and a read-only server refuses all of them."""
    tokens = TokenFile(tmp_path / "tokens.json")
    made = {scope: tokens.create(scope, scope) for scope in SCOPES}
    settings = ServerSettings(config=config, tokens_path=tmp_path / "tokens.json", jobs_folder=tmp_path / "jobs")
    with served(settings) as client:
        allowed = [scope for scope in SCOPES if _status(client, made[scope], work) != 403]
    assert allowed == list(SCOPES)[list(SCOPES).index(needed) :]  # type: ignore[arg-type]
    with served(settings.model_copy(update={"read_only": True})) as client:
        assert _status(client, made["delete"], work) == 403


def _status(client: httpx.Client, token: str, work: dict[str, Any]) -> int:
    return client.post(JOBS, json=work, headers={"Authorization": f"Bearer {token}"}).status_code
