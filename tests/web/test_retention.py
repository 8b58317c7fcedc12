"""Retention through the REST API: what is shown is what is deleted, and nothing else."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.errors import ProtectedCheckpointError
from ckpt_lib.policies.retention import KeepNewest
from ckpt_lib.web import ServerSettings
from ckpt_lib.web.retaining import MOST_PREVIEWS
from tests.web.running import ended, served

PLAN = "/experiments/digits/retention"
JOBS = "/experiments/digits/jobs"


def cleaned(client: httpx.Client, **given: Any) -> Any:
    return ended(client, client.post(JOBS, json={"operation": "cleanup", **given}))


def test_what_is_shown_is_deleted(client: httpx.Client, config: CheckpointConfig) -> None:
    """Reasons and bytes first; then the job deletes just that, into the trash."""
    manager = CheckpointManager(config, "digits")
    ids = manager.checkpoint_ids()
    assert client.get(PLAN).json()["deleted_ids"] == []
    for rules in ({"max_checkpoints": 1}, {"policy": {"kind": "newest", "count": 1}}):
        asked = {name: value if isinstance(value, int) else json.dumps(value) for name, value in rules.items()}
        plan = client.get(PLAN, params=asked).json()
        assert plan["deleted_ids"] == [ids[0]]
        assert plan["freed_bytes"] == manager.get_checkpoint(ids[0]).file_size
        assert plan["decisions"][-1]["reason"] == "no rule keeps it"
        job = cleaned(client, **rules, fingerprint=plan["fingerprint"])
        assert job["state"] == "succeeded", job
        assert job["result"][0]["result"]["deleted_ids"] == [ids[0]]
        assert manager.checkpoint_ids() == ids[1:]
        assert client.post(f"/experiments/digits/checkpoints/{ids[0]}/undelete").status_code == 200


def test_another_plan_is_not_carried_out(client: httpx.Client, config: CheckpointConfig) -> None:
    """After a save, a pin or an edit that changes the plan, the job fails and everything stays."""
    manager = CheckpointManager(config, "digits")
    plan = client.get(PLAN, params={"max_checkpoints": 1}).json()
    manager.save_checkpoint(model=nn.Linear(1, 1), epoch=4, metrics={"val_loss": 5.0})
    ids = manager.checkpoint_ids()
    job = cleaned(client, max_checkpoints=1, fingerprint=plan["fingerprint"])
    assert (job["state"], job["problem"]["type"]) == ("failed", "ProtectedCheckpointError")
    assert job["problem"]["status"] == 409
    again = client.get(PLAN, params={"max_checkpoints": 1}).json()
    assert again["fingerprint"] != plan["fingerprint"]
    manager.pin_checkpoint(ids[0])
    assert cleaned(client, max_checkpoints=1, fingerprint=again["fingerprint"])["state"] == "failed"
    assert manager.checkpoint_ids() == ids


def test_a_damaged_one_takes_no_others_place(client: httpx.Client, config: CheckpointConfig) -> None:
    """The plan counts what nobody has read as sound; the job reads it first, and deletes nothing where it is not."""
    manager = CheckpointManager(config.model_copy(update={"max_checkpoints": 20}), "digits")
    for epoch in (4, 5):
        manager.save_checkpoint(model=nn.Linear(1, 1), epoch=epoch, metrics={"val_loss": 9.0})
    plan = client.get(PLAN, params={"max_checkpoints": 3}).json()
    unread = next(item for item in plan["decisions"] if item["keep"] and item["status"] == "unverified")
    store = f"{config.checkpoint_dir}/digits/{unread['checkpoint_id']}.pt"
    with open(store, "r+b") as file:
        file.seek(200)
        byte = file.read(1)
        file.seek(200)
        file.write(bytes([byte[0] ^ 1]))
    ids = manager.checkpoint_ids()
    assert cleaned(client, max_checkpoints=3, fingerprint=plan["fingerprint"])["problem"]["status"] == 409
    assert manager.checkpoint_ids() == ids


def test_plans_leave_places_for_other_requests(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes a while on a thread; one too many is told when to come back, and all else is answered meanwhile."""
    going_on, begun = threading.Event(), threading.Semaphore(0)
    plan = CheckpointManager.cleanup_checkpoints

    def slowly(*args: Any, **options: Any) -> Any:
        begun.release()
        assert going_on.wait(30)
        return plan(*args, **options)

    monkeypatch.setattr(CheckpointManager, "cleanup_checkpoints", slowly)
    with ThreadPoolExecutor() as pool:
        asked = [pool.submit(client.get, PLAN) for _ in range(MOST_PREVIEWS // 2)]
        for _ in asked:
            assert begun.acquire(timeout=30)
        refused = client.get(PLAN)
        assert (refused.status_code, refused.json()["type"]) == (429, "LimitError")
        assert refused.headers["retry-after"] == "5"
        assert client.get("/experiments").status_code == 200
        going_on.set()
        assert {response.result().status_code for response in asked} == {200}
    assert client.get(PLAN).status_code == 200


def test_what_is_no_rule_is_refused(client: httpx.Client) -> None:
    """By the plan and by the job, before anything is looked at."""
    wrong: tuple[dict[str, str | int], ...] = (
        {"policy": "{"},
        {"policy": '{"kind": "none"}'},
        {"policy": '{"kind": "newest", "count": -1}'},
        {"max_checkpoints": -1},
        {"policy": '{"kind": "newest"}', "max_checkpoints": 1},
    )
    for params in wrong:
        assert client.get(PLAN, params=params).status_code == 422
    for given in ({}, {"policy": {"kind": "none"}, "fingerprint": ""}, {"names": ["best"], "fingerprint": ""}):
        assert client.post(JOBS, json={"operation": "cleanup", **given}).status_code == 422


def test_backups_that_changed_are_kept(config: CheckpointConfig, settings: ServerSettings) -> None:
    """The checkpoints go as shown; the job fails for the backups, and names no path of the server."""
    few = settings.model_copy(update={"config": config.model_copy(update={"max_backups": 1})})
    manager = CheckpointManager(config, "digits")
    ids = manager.checkpoint_ids()
    with served(few) as client:
        plan = client.get(PLAN, params={"max_checkpoints": 1}).json()
        assert plan["backups"]["deleted_ids"] == [ids[0]]
        manager.delete_backup(ids[0])
        job = cleaned(client, max_checkpoints=1, fingerprint=plan["fingerprint"])
        assert (job["state"], job["result"][0]["result"]["deleted_ids"]) == ("failed", [ids[0]])
        assert "backups" in job["problem"]["detail"]
        assert config.checkpoint_dir not in str(job)
    assert manager.backup_ids() == ids[1:]


def test_backups_are_part_of_the_plan(tmp_path: Any) -> None:
    """With max_backups, the fingerprint covers them; backups that changed are kept, and the report says so."""
    config = CheckpointConfig(checkpoint_dir=str(tmp_path / "store"), max_checkpoints=9, max_backups=9, save_rng=False)
    manager = CheckpointManager(config, "run")
    for epoch in range(4):
        manager.save_checkpoint(model=nn.Linear(1, 1), epoch=epoch, metrics={"val_loss": 4.0 - epoch})
    few = CheckpointManager(config.model_copy(update={"max_backups": 1}), "run")
    plan = few.cleanup_checkpoints(policy=KeepNewest(count=1), dry_run=True, verify=False)
    assert plan.backups is not None
    assert len(plan.backups.plan.deleted_ids) == 3
    manager.delete_backup(manager.checkpoint_ids()[0])
    report = few.cleanup_checkpoints(policy=KeepNewest(count=1), fingerprint=plan.fingerprint)
    assert len(report.deleted_ids) == 3
    assert report.backups_error is not None
    assert "no longer the one that was shown" in report.backups_error
    assert len(manager.backup_ids()) == 3
    with pytest.raises(ProtectedCheckpointError):
        few.cleanup_backups(fingerprint=plan.fingerprint)
