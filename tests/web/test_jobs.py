"""Long work as jobs of the REST API: started, watched, cancelled, and told as interrupted after a kill."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.web import ServerSettings
from ckpt_lib.web.jobs import ENDED
from tests.cli.running import on_posix
from tests.helpers import flip_bit
from tests.web.running import served

JOBS = "/experiments/digits/jobs"


def ended(client: httpx.Client, started: httpx.Response) -> Any:
    """The job once it has ended."""
    assert started.status_code == 202, started.text
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        job = client.get(started.headers["location"].removeprefix("/api/v1")).json()
        if job["state"] in ENDED:
            return job
        time.sleep(0.02)
    raise AssertionError(f"the job does not end: {job}")


def payload_of(config: CheckpointConfig, name: str) -> Path:
    checkpoint = CheckpointManager(config, "digits").get_checkpoint(name)
    return Path(config.checkpoint_dir, "digits", f"{checkpoint.checkpoint_id}.pt")


def test_validate_repair_and_back_up(client: httpx.Client, config: CheckpointConfig) -> None:
    """Damage is a result, not a failure of the job; repaired from the backup, all is well again."""
    assert ended(client, client.post(JOBS, json={"operation": "validate"}))["result"]["is_valid"] is True
    flip_bit(payload_of(config, "best"), 200)
    found = ended(client, client.post(JOBS, json={"operation": "validate"}))
    assert (found["state"], found["result"]["is_valid"]) == ("succeeded", False)
    assert found["done_bytes"] == found["total_bytes"]
    assert [report["is_valid"] for report in found["result"]["reports"]] == [True, False, True]
    assert ended(client, client.post(JOBS, json={"operation": "repair", "names": ["best"]}))["state"] == "succeeded"
    found = ended(client, client.post(JOBS, json={"operation": "validate", "names": ["best"]}))
    assert found["result"]["is_valid"] is True
    assert ended(client, client.post(JOBS, json={"operation": "backup"}))["result"] == {"new_ids": []}
    assert [job["state"] for job in client.get("/jobs").json()["items"]] == ["succeeded"] * 5


def test_a_job_that_fails_says_why(client: httpx.Client) -> None:
    """With the words of the library; what cannot be a job is refused before it is one."""
    failed = ended(client, client.post(JOBS, json={"operation": "restore", "names": ["nothing"]}))
    assert (failed["state"], failed["problem"]["type"]) == ("failed", "CheckpointNotFoundError")
    for body in ({"operation": "format"}, {"operation": "repair"}, {}, {"operation": "validate", "names": "best"}):
        assert client.post(JOBS, json=body).status_code == 422
    assert client.post("/experiments/none/jobs", json={"operation": "backup"}).status_code == 404
    assert client.get("/jobs/none").status_code == 404


def test_jobs_end_with_their_server(settings: ServerSettings) -> None:
    """And the next one remembers them."""
    with served(settings) as client:
        started = client.post(JOBS, json={"operation": "validate"})
    with served(settings) as client:
        assert ended(client, started)["state"] in {"succeeded", "cancelled"}


@on_posix
def test_a_killed_server_leaves_an_interrupted_job(settings: ServerSettings, config: CheckpointConfig) -> None:
    """The next server says so, the store is whole, and the same work is done again."""
    program = (
        "import sys; from ckpt_lib.web import jobs; from ckpt_lib.web.operations import Validate; import time\n"
        "Validate.do = lambda self, manager, progress: time.sleep(60)\n"
        "from ckpt_lib.web import ServerSettings; from ckpt_lib.web.server import run\n"
        "settings = ServerSettings.model_validate_json(sys.argv[1])\n"
        "run(settings, tell=lambda url: print(url, flush=True))"
    )
    given = settings.model_copy(update={"port": 0}).model_dump_json()
    with subprocess.Popen([sys.executable, "-c", program, given], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = re.search(r"http://\S+", process.stdout.readline())
        assert url is not None
        with httpx.Client(base_url=url[0], trust_env=False) as client:
            started = client.post(JOBS, json={"operation": "validate"})
            while client.get(f"/jobs/{started.json()['job_id']}").json()["state"] != "running":
                time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    with served(settings) as client:
        assert ended(client, started)["state"] == "interrupted"
        assert ended(client, client.post(JOBS, json={"operation": "validate"}))["result"]["is_valid"] is True


def test_a_cancelled_job_stops_at_its_next_step(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that waits never begins."""
    from ckpt_lib.web.operations import Validate

    def slowly(_self: Any, _manager: Any, progress: Any) -> None:
        while True:
            time.sleep(0.01)
            progress(1)

    monkeypatch.setattr(Validate, "do", slowly)
    started = [client.post(JOBS, json={"operation": "validate"}) for _ in range(4)]
    for response in reversed(started):
        assert client.delete(f"/jobs/{response.json()['job_id']}").status_code == 202
    found = [ended(client, response) for response in started]
    assert [job["state"] for job in found] == ["cancelled"] * 4
    assert sum(job["started_at"] is None for job in found) == 2
