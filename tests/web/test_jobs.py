"""Long work as jobs of the REST API: started, watched, cancelled, and interrupted by a kill."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.errors import AlreadyRunningError, ConfigError, LimitError
from ckpt_lib.web import ServerSettings, idempotency
from ckpt_lib.web import jobs as jobs_module
from ckpt_lib.web.job import Job, JobSummary
from ckpt_lib.web.jobs import Jobs
from ckpt_lib.web.managers import Managers
from ckpt_lib.web.operations import Validate
from tests.cli.running import on_posix
from tests.helpers import flip_bit
from tests.web.own_runner import OwnRunner
from tests.web.running import ended, served, wait_for

JOBS = "/experiments/digits/jobs"
VALIDATE_ALL = {"operation": "validate", "names": "all"}


def payload_of(config: CheckpointConfig, name: str) -> Path:
    checkpoint = CheckpointManager(config, "digits").get_checkpoint(name)
    return Path(config.checkpoint_dir, "digits", f"{checkpoint.checkpoint_id}.pt")


def test_validate_repair_and_back_up(client: httpx.Client, config: CheckpointConfig) -> None:
    """Damage is a result, not a failure of the job; after a repair from the backup, everything is valid again."""
    found = ended(client, client.post(JOBS, json=VALIDATE_ALL))
    assert [outcome["result"]["is_valid"] for outcome in found["result"]] == [True, True, True]
    flip_bit(payload_of(config, "best"), 200)
    found = ended(client, client.post(JOBS, json=VALIDATE_ALL))
    assert found["state"] == "succeeded"
    assert found["done_bytes"] == found["total_bytes"]
    assert [outcome["result"]["is_valid"] for outcome in found["result"]] == [True, False, True]
    assert ended(client, client.post(JOBS, json={"operation": "repair", "names": ["best"]}))["state"] == "succeeded"
    found = ended(client, client.post(JOBS, json={"operation": "validate", "names": ["best"]}))
    assert [outcome["result"]["is_valid"] for outcome in found["result"]] == [True]
    assert found["who"] == "anyone on this machine"


def test_one_bad_checkpoint_does_not_lose_the_others(client: httpx.Client, config: CheckpointConfig) -> None:
    """A damaged checkpoint is a problem of its own, and the others are copied."""
    manager = CheckpointManager(config, "digits")
    ids = manager.checkpoint_ids()
    shutil.rmtree(Path(config.checkpoint_dir, "digits", "backups"))
    payload_of(config, "epoch_1").write_bytes(b"")
    job = ended(client, client.post(JOBS, json={"operation": "backup", "names": "all"}))
    assert job["state"] == "failed"
    assert [(outcome["checkpoint_id"], outcome["result"]) for outcome in job["result"]] == [
        (ids[0], None),
        (ids[1], {"kind": "backup", "done": "copied"}),
        (ids[2], {"kind": "backup", "done": "copied"}),
    ]
    assert job["result"][0]["problem"]["type"] == "CorruptCheckpointError"
    assert CheckpointManager(config, "digits").backup_ids() == ids[1:]


def test_names_are_resolved_at_the_start(client: httpx.Client, config: CheckpointConfig) -> None:
    """A job keeps the ids, whatever the names stand for later; what cannot be a job is refused before it is one."""
    latest = CheckpointManager(config, "digits").get_checkpoint("latest").checkpoint_id
    job = ended(client, client.post(JOBS, json={"operation": "validate", "names": ["latest", "epoch_3", latest]}))
    assert job["checkpoint_ids"] == [latest]
    assert client.post(JOBS, json={"operation": "restore", "names": ["nothing"]}).status_code == 404
    for body in ({"operation": "format"}, {"operation": "repair"}, {}, {"operation": "validate", "names": "best"}):
        assert client.post(JOBS, json=body).status_code == 422
    assert client.post("/experiments/none/jobs", json={"operation": "backup", "names": "all"}).status_code == 404
    unknown = client.get("/jobs/none")
    assert (unknown.status_code, unknown.json()["type"]) == (404, "JobNotFoundError")


@pytest.mark.parametrize("operation", ["validate", "backup", "restore", "repair", "export"])
def test_all_checkpoints_are_meant_on_purpose_alone(client: httpx.Client, operation: str) -> None:
    """An empty list is a mistake of a program, and no names may be one as well."""
    wrong: tuple[dict[str, Any], ...] = ({"names": []}, {}, {"names": None}, {"names": ""}, {"names": "All"})
    for names in wrong:
        assert client.post(JOBS, json={"operation": operation, **names}).status_code == 422
    for given in ({"operation": "cleanup", "fingerprint": ""}, {"operation": "import", "uploads": ["0" * 32]}):
        assert client.post(JOBS, json={**given, "names": []}).status_code == 422
    assert client.get("/jobs").json()["items"] == []


def test_jobs_are_listed_in_pages(client: httpx.Client) -> None:
    """The newest first, without results."""
    started = [ended(client, client.post(JOBS, json=VALIDATE_ALL))["job_id"] for _ in range(3)]
    first = client.get("/jobs", params={"limit": 2}).json()
    rest = client.get("/jobs", params={"limit": 2, "after": first["next"]}).json()
    assert [job["job_id"] for job in first["items"] + rest["items"]] == started[::-1]
    assert rest["next"] is None
    assert first["items"][0].keys() == JobSummary.model_fields.keys()


def test_a_page_of_jobs_goes_on_where_one_was_forgotten(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job that a page ended with may be forgotten when the next page is asked for."""
    started = [ended(client, client.post(JOBS, json=VALIDATE_ALL))["job_id"] for _ in range(3)]
    after = client.get("/jobs", params={"limit": 2}).json()["next"]
    monkeypatch.setattr(jobs_module, "_KEPT", 2)
    started.append(ended(client, client.post(JOBS, json=VALIDATE_ALL))["job_id"])
    wait_for(lambda: len(client.get("/jobs").json()["items"]) == 2)
    assert client.get(f"/jobs/{started[1]}").status_code == 404
    assert client.get("/jobs", params={"after": after}).json() == {"items": [], "next": None}
    assert client.get("/jobs", params={"after": "nothing"}).status_code == 422


KEY = {"Idempotency-Key": '"8e03978e-40d5-43dd-bc93-6894a57f9324"'}


def test_the_same_request_starts_one_job(settings: ServerSettings, config: CheckpointConfig) -> None:
    """By its key: sent again, at once and to the next server; another body with the key is refused."""
    body = {"operation": "validate", "names": ["latest"]}
    with served(settings) as client:
        with ThreadPoolExecutor() as pool:
            asked = [pool.submit(client.post, JOBS, json=body, headers=KEY) for _ in range(8)]
            started = [response.result() for response in asked]
        assert {response.status_code for response in started} == {202}
        (location,) = {response.headers["location"] for response in started}
        assert ended(client, started[0])["idempotency_key"] == KEY["Idempotency-Key"].strip('"')
    CheckpointManager(config, "digits").delete_checkpoint("latest")
    with served(settings) as client:
        plain = {"Idempotency-Key": KEY["Idempotency-Key"].strip('"')}
        assert client.post(JOBS, json=body, headers=plain).headers["location"] == location
        for other in ({**body, "names": ["best"]}, {**body, "operation": "backup"}):
            refused = client.post(JOBS, json=other, headers=KEY)
            assert (refused.status_code, refused.json()["type"]) == (422, "IdempotencyKeyError")
        assert client.post("/experiments/words/jobs", json=body, headers=KEY).status_code == 422
        assert client.post(JOBS, json=body).headers["location"] != location
        assert len(client.get("/jobs").json()["items"]) == 2


def test_a_key_is_that_of_a_token_and_of_a_day(settings: ServerSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody gets the job of somebody else by guessing a key, and after a day it stands for nothing."""
    jobs, work = Jobs(settings.jobs_path(), Managers(settings.config)), Validate(names=["latest"])
    jobs.open()
    mine = jobs.start("digits", work, "me", key="k")
    assert jobs.start("digits", work, "me", key="k").job_id == mine.job_id
    assert jobs.start("digits", work, "you", key="k").job_id != mine.job_id
    monkeypatch.setattr(idempotency, "KEPT", timedelta(0))
    assert jobs.start("digits", work, "me", key="k").job_id != mine.job_id
    jobs.close()


@pytest.mark.parametrize("key", ["", '""', '"', "a b", '"\\x"', "k" * 256, '"a", "b"', "\xe9"])
def test_what_is_no_key_is_refused(client: httpx.Client, key: str) -> None:
    """Without starting anything."""
    response = client.post(JOBS, json=VALIDATE_ALL, headers={b"Idempotency-Key": key.encode("latin-1")})
    assert (response.status_code, response.json()["type"]) == (422, "ConfigError")
    assert client.get("/jobs").json()["items"] == []


def test_what_max_backups_retires_is_told(settings: ServerSettings, config: CheckpointConfig) -> None:
    """A copy that a later one of the same job has pushed out is not called a backup."""
    shutil.rmtree(Path(config.checkpoint_dir, "digits", "backups"))
    one = config.model_copy(update={"max_backups": 1})
    with served(settings.model_copy(update={"config": one})) as client:
        job = ended(client, client.post(JOBS, json={"operation": "backup", "names": "all"}))
    held = CheckpointManager(config, "digits").backup_ids()
    told = {outcome["checkpoint_id"]: outcome["result"]["done"] for outcome in job["result"]}
    assert {name for name, result in told.items() if result == "copied"} == set(held)
    assert list(told.values()).count("deleted again") == 3 - len(held) > 0


def test_a_restore_where_all_is_gone(client: httpx.Client, config: CheckpointConfig) -> None:
    """Names stand for nothing then, and the problem says which id brings something back."""
    manager = CheckpointManager(config, "digits")
    ids = manager.checkpoint_ids()
    for checkpoint_id in ids:
        manager.delete_checkpoint(checkpoint_id)
    refused = client.post(JOBS, json={"operation": "restore", "names": ["latest"]})
    assert refused.status_code == 404
    assert f"the newest backup is {ids[-1]}" in refused.json()["hint"]
    assert ended(client, client.post(JOBS, json={"operation": "restore", "names": [ids[-1]]}))["state"] == "succeeded"
    assert manager.checkpoint_ids() == [ids[-1]]


def test_an_experiment_of_backups_alone(settings: ServerSettings, config: CheckpointConfig, tmp_path: Path) -> None:
    """After the loss of a disk, its backups are restored from where they are."""
    apart = config.model_copy(update={"backup_dir": str(tmp_path / "backups")})
    saved = CheckpointManager(apart, "lost").save_checkpoint(model=nn.Linear(1, 1), epoch=1)
    shutil.rmtree(Path(config.checkpoint_dir, "lost"))
    with served(settings.model_copy(update={"config": apart})) as client:
        job = ended(client, client.post("/experiments/lost/jobs", json={"operation": "restore", "names": [saved]}))
    assert job["state"] == "succeeded"
    assert CheckpointManager(apart, "lost").checkpoint_ids() == [saved]


def test_the_number_of_waiting_jobs_is_limited(settings: ServerSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many that are started at once, no more are taken than there is room for; the others are told so."""
    monkeypatch.setattr("ckpt_lib.web.jobs.MOST_WAITING", 5)
    going_on = threading.Event()
    monkeypatch.setattr(Validate, "do_one", lambda *_: going_on.wait(30) and None)
    jobs = Jobs(settings.jobs_path(), Managers(settings.config))
    jobs.open()
    together = threading.Barrier(20)

    def start(number: int) -> bool:
        together.wait()
        try:
            jobs.start("digits", Validate(names="all"), str(number % 4))
        except LimitError:
            return False
        return True

    with ThreadPoolExecutor(20) as pool:
        assert sum(pool.map(start, range(20))) == 5
    assert len(list(settings.jobs_path().glob("*.json"))) == 5
    going_on.set()
    jobs.close()
    assert {job.state for job in jobs.all()} <= {"succeeded", "cancelled"}


def test_no_token_takes_all_places_of_jobs(settings: ServerSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of them are left for others; it is told when to try again, and its places are free once its jobs ended."""
    going_on = threading.Event()
    monkeypatch.setattr(Validate, "do_one", lambda *_: going_on.wait(30) and None)
    monkeypatch.setattr("ckpt_lib.web.jobs.MOST_WAITING", 4)
    jobs = Jobs(settings.jobs_path(), Managers(settings.config))
    jobs.open()
    started = [jobs.start("digits", Validate(names="all"), who) for who in ("one", "one", "other")]
    with pytest.raises(LimitError, match="2 of one token"):
        jobs.start("digits", Validate(names="all"), "one")
    started.append(jobs.start("digits", Validate(names="all"), "other"))
    with pytest.raises(LimitError, match="too many jobs"):
        jobs.start("digits", Validate(names="all"), "third")
    going_on.set()
    wait_for(lambda: not jobs.unfinished())
    jobs.start("digits", Validate(names="all"), "one")
    jobs.close()
    assert len(started) == 4


def test_jobs_on_many_checkpoints_are_forgotten_sooner(
    settings: ServerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that their outcomes do not fill the memory of a server that goes on for long; the newest is kept."""
    monkeypatch.setattr("ckpt_lib.web.jobs._KEPT_CHECKPOINTS", 7)
    names = ["checkpoint_epoch_0001_step_000100_20231201_143022", "best", "latest"]
    with served(settings) as client:
        started = [client.post(JOBS, json={"operation": "validate", "names": names}) for _ in range(4)]
        for answer in started[2:]:
            assert len(ended(client, answer)["result"]) == 3
        wait_for(lambda: len(client.get("/jobs").json()["items"]) == 2)
        found = [client.get(answer.headers["location"].removeprefix("/api/v1")).status_code for answer in started]
        assert found == [404, 404, 200, 200]
        monkeypatch.setattr("ckpt_lib.web.jobs._KEPT_CHECKPOINTS", 1)
        assert ended(client, client.post(JOBS, json=VALIDATE_ALL))["state"] == "succeeded"
        wait_for(lambda: len(client.get("/jobs").json()["items"]) == 1)
    assert len(list(settings.jobs_path().glob("*.json"))) == 1


def test_a_folder_that_cannot_be_used(settings: ServerSettings, tmp_path: Path) -> None:
    """It is refused before the server answers, and the message names the option."""
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "jobs"):
        with pytest.raises(ConfigError, match="--jobs-folder"):
            Jobs(folder, Managers(settings.config)).open()


def test_a_runner_of_another_package(settings: ServerSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found by its entry point, told about jobs, and asked about those of earlier servers."""
    info = tmp_path / "own_runner-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-runner\nVersion: 1.0\n")
    points = "own = tests.web.own_runner:OwnRunner\nbroken = tests.web.own_runner:Nothing\n"
    (info / "entry_points.txt").write_text(f"[ckpt_lib.jobs]\n{points}")
    monkeypatch.syspath_prepend(tmp_path)
    own = settings.model_copy(update={"runner": "own"})
    with served(own) as client:
        kept, other, done = (client.post(JOBS, json=VALIDATE_ALL).json()["job_id"] for _ in range(3))
        client.delete(f"/jobs/{done}")
        assert client.get(f"/jobs/{done}").json()["state"] == "cancelled"
        assert client.get(f"/jobs/{kept}").json()["url"] == f"https://runs.example/{kept}"
    OwnRunner.remembered = {kept}
    with served(own) as client:
        states = [client.get(f"/jobs/{job_id}").json()["state"] for job_id in (kept, other, done)]
    assert states == ["running", "interrupted", "cancelled"]
    with pytest.raises(ConfigError, match="cannot be loaded"), served(settings.model_copy(update={"runner": "broken"})):
        pass


def test_one_server_uses_a_folder_of_jobs(settings: ServerSettings) -> None:
    """A second one is refused until the first has ended."""
    folder = settings.jobs_path()
    managers = Managers(settings.config)
    first, second = Jobs(folder, managers), Jobs(folder, managers)
    first.open()
    with pytest.raises(AlreadyRunningError, match="--jobs-folder"):
        second.open()
    first.close()
    second.open()
    second.close()


def test_stored_jobs_of_a_server_that_is_gone(settings: ServerSettings, caplog: pytest.LogCaptureFixture) -> None:
    """One that had not ended is interrupted, whoever ran it; a file that cannot be read is kept aside."""
    folder, managers = settings.jobs_path(), Managers(settings.config)
    folder.mkdir(parents=True)
    job = Job(
        job_id="1",
        experiment_name="digits",
        work=Validate(names="all"),
        checkpoint_ids=[],
        who="x",
        created_at=datetime.now(UTC),
    )
    (folder / "1.json").write_text(job.model_copy(update={"state": "running"}).model_dump_json(), encoding="utf-8")
    (folder / "2.json").write_text("{", encoding="utf-8")
    jobs = Jobs(folder, managers)
    jobs.open()
    assert [(item.job_id, item.state) for item in jobs.all()] == [("1", "interrupted")]
    jobs.close()
    assert (folder / "2.json.unreadable").read_text(encoding="utf-8") == "{"
    assert "2.json" in caplog.text


def test_a_job_ends_although_it_cannot_be_stored(settings: ServerSettings, caplog: pytest.LogCaptureFixture) -> None:
    """The failed write is logged, and the job goes on in memory."""
    with served(settings) as client:
        shutil.rmtree(settings.jobs_path())
        assert ended(client, client.post(JOBS, json=VALIDATE_ALL))["state"] == "succeeded"
    assert "storing the job" in caplog.text


def test_jobs_end_with_their_server(settings: ServerSettings) -> None:
    """The next server lists them."""
    with served(settings) as client:
        started = client.post(JOBS, json=VALIDATE_ALL)
    with served(settings) as client:
        assert ended(client, started)["state"] in {"succeeded", "cancelled"}


@on_posix
def test_a_killed_server_leaves_an_interrupted_job(settings: ServerSettings, config: CheckpointConfig) -> None:
    """The next server reports it, the store is whole, and the same work succeeds."""
    program = (
        "import sys; from ckpt_lib.web import jobs; from ckpt_lib.web.operations import Validate; import time\n"
        "Validate.do_one = lambda self, manager, checkpoint_id, progress: time.sleep(60)\n"
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
            started = client.post(JOBS, json=VALIDATE_ALL)
            deadline = time.monotonic() + 30
            while client.get(f"/jobs/{started.json()['job_id']}").json()["state"] != "running":
                assert time.monotonic() < deadline
                time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    with served(settings) as client:
        assert ended(client, started)["state"] == "interrupted"
        assert ended(client, client.post(JOBS, json=VALIDATE_ALL))["state"] == "succeeded"


def test_a_cancelled_job_stops_at_its_next_step(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that waits never begins."""

    def slowly(_self: Any, _manager: Any, _checkpoint_id: str, progress: Any) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            time.sleep(0.01)
            progress(1)

    monkeypatch.setattr(Validate, "do_one", slowly)
    started = [client.post(JOBS, json=VALIDATE_ALL) for _ in range(4)]
    for response in reversed(started):
        assert client.delete(f"/jobs/{response.json()['job_id']}").status_code == 202
    found = [ended(client, response) for response in started]
    assert [job["state"] for job in found] == ["cancelled"] * 4
    assert sum(job["started_at"] is None for job in found) == 2
