"""What transfers cost a server: seconds and memory of downloads and uploads that are interrupted and gone on with.

    python -m benchmarks.transferring --size 2GB

Saves a checkpoint, and serves its store by a process of its own. A client downloads the payload in three parts, and
uploads it again in three, each broken off in the middle of a request; a job imports it into another experiment, and
another job exports it. Compares every byte, and prints by how much the server's memory grows at most: all of it, and
what no file backs (``Rss`` and ``Anonymous`` of ``/proc/PID/smaps_rollup``). Ends with 1 if a byte differs.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

from benchmarks.harness import size_bytes_of
from benchmarks.states import ADAM, make
from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.web import ServerSettings

_PERIOD_SECONDS = 0.02
_PIECE_BYTES = 2**18
_BREAKS = (0.3, 0.65)
"""After which parts of the file connections are broken off."""
_OFFSET_TYPE = {"Content-Type": "application/offset+octet-stream"}


class _BrokenOffError(Exception):
    """Ends a request in the middle of its body."""


def memory_bytes(pid: int) -> tuple[int, int]:
    """The memory of a process: all of it, and what no file backs."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    found = {line.split()[0]: int(line.split()[1]) * 2**10 for line in lines[1:]}
    return found["Rss:"], found["Anonymous:"]


def measured(pid: int, work: Callable[[], object]) -> tuple[float, int, int]:
    """The seconds that work takes, and by how much the memory of a process grows at most meanwhile."""
    before, samples, done = memory_bytes(pid), [(0, 0)], threading.Event()

    def sample() -> None:
        while not done.wait(_PERIOD_SECONDS):
            rss, anonymous = memory_bytes(pid)
            samples.append((rss - before[0], anonymous - before[1]))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started, max(rss for rss, _ in samples), max(found for _, found in samples)
    finally:
        done.set()
        thread.join()


def download(client: httpx.Client, path: str, target: Path) -> None:
    """Download a file, broken off and gone on with, and compare it with its digest."""
    head = client.head(path).headers
    size_bytes = int(head["content-length"])
    with target.open("wb") as file:
        for stop in (*(int(part * size_bytes) for part in _BREAKS), size_bytes):
            headers = {"Range": f"bytes={file.tell()}-", "If-Range": head["etag"]}
            with client.stream("GET", path, headers=headers) as found:
                if found.status_code != 206:
                    raise SystemExit(f"a range was answered with {found.status_code}")
                for piece in found.iter_raw():
                    file.write(piece)
                    if stop <= file.tell() < size_bytes:
                        break
    if head["repr-digest"] != digest_header(target):
        raise SystemExit("the download differs from its digest")


def upload(client: httpx.Client, source: Path, name: str) -> str:
    """Upload a file, broken off and gone on with; return its id."""
    size_bytes = source.stat().st_size
    headers = {
        "Upload-Length": str(size_bytes),
        "Upload-Metadata": f"filename {base64.b64encode(name.encode()).decode()}",
        "Repr-Digest": digest_header(source),
    }
    created = client.post("/uploads", headers=headers).raise_for_status().json()
    path = f"/uploads/{created['upload_id']}"
    for stop in (*(int(part * size_bytes) for part in _BREAKS), None):
        offset = int(client.head(path).headers["upload-offset"])
        content = _pieces(source, offset, stop)
        try:
            client.patch(path, content=content, headers={**_OFFSET_TYPE, "Upload-Offset": str(offset)})
        except _BrokenOffError:
            time.sleep(1)  # the server notices, and writes what has arrived
    if (arrived := client.get(path).json()["offset_bytes"]) != size_bytes:
        raise SystemExit(f"{arrived} of {size_bytes} bytes have arrived")
    return str(created["upload_id"])


def _pieces(source: Path, start: int, stop: int | None) -> Iterator[bytes]:
    with source.open("rb") as file:
        file.seek(start)
        while piece := file.read(_PIECE_BYTES):
            yield piece
            if stop is not None and file.tell() >= stop:
                raise _BrokenOffError


def digest_header(path: Path) -> str:
    """The SHA-256 of a file as RFC 9530 writes it."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
    return f"sha-256=:{base64.b64encode(digest).decode()}:"


def do_job(client: httpx.Client, experiment: str, **work: Any) -> Any:
    """Start a job and return its first outcome."""
    started = client.post(f"/experiments/{experiment}/jobs", json=work).raise_for_status()
    while (job := client.get(f"/jobs/{started.json()['job_id']}").json())["state"] in {"waiting", "running"}:
        time.sleep(_PERIOD_SECONDS)
    if job["state"] != "succeeded":
        raise SystemExit(f"a job has {job['state']}: {job['problem']}")
    return job["result"][0]


def _save(folder: Path, size: str) -> CheckpointConfig:
    config = CheckpointConfig(checkpoint_dir=str(folder / "store"), backup_checkpoints=False, save_rng=False)
    CheckpointManager(config, "first").save_checkpoint(**make(ADAM, size).parts, epoch=0)
    return config


def _rows(folder: Path, config: CheckpointConfig, client: httpx.Client, pid: int) -> Iterator[tuple[str, Any]]:
    target = folder / "downloaded.pt"
    path = f"/experiments/first/checkpoints/{CheckpointManager(config, 'first').checkpoint_ids()[0]}/payload"
    yield "download in three parts", measured(pid, lambda: download(client, path, target))
    ids: list[str] = []
    yield "upload in three parts", measured(pid, lambda: ids.append(upload(client, target, "downloaded.pt")))
    work = {"operation": "import", "uploads": ids, "new_experiment": True}
    yield "import", measured(pid, lambda: do_job(client, "second", **work))
    checksums = {CheckpointManager(config, name).get_checkpoint("latest").checksum for name in ("first", "second")}
    if len(checksums) > 1:
        raise SystemExit("the imported payload differs from the first one")
    work = {"operation": "export", "names": ["latest"]}
    yield "export", measured(pid, lambda: do_job(client, "second", **work))


def _serve(settings: str) -> None:
    from ckpt_lib.web.server import run

    run(ServerSettings.model_validate_json(settings), announce=lambda url: print(url + "/api/v1", flush=True))


def _warm_up(client: httpx.Client, folder: Path) -> None:
    """Do all of it with a small checkpoint: modules that are loaded once are no part of a transfer."""
    config = _save(folder / "small", "100KB")
    payload = next((folder / "small" / "store" / "first").glob("*.pt"))
    name = CheckpointManager(config, "first").checkpoint_ids()[0]
    do_job(client, "small", operation="import", uploads=[upload(client, payload, f"{name}.pt")], new_experiment=True)
    do_job(client, "small", operation="export", names=["latest"])


def main() -> None:
    """Print the table, or serve."""
    if sys.argv[1:2] == ["--serve"]:
        _serve(sys.argv[2])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="2GB", help="the size of the checkpoint, such as 2GB")
    parser.add_argument("--folder", help="a folder on the disk to measure")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="transferring-", dir=options.folder) as name:
        folder = Path(name)
        config = _save(folder, options.size)
        settings = ServerSettings(config=config, port=0, jobs_folder=folder / "jobs")
        command = [sys.executable, "-m", "benchmarks.transferring", "--serve", settings.model_dump_json()]
        root = Path(__file__).parent.parent
        print(f"a checkpoint of {size_bytes_of(options.size) / 1e9:.3g} GB\n")
        print("| what | seconds | memory, MiB | of it anonymous, MiB |\n|---|---|---|---|")
        with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                with httpx.Client(base_url=server.stdout.readline().strip(), timeout=600, trust_env=False) as client:
                    _warm_up(client, folder)
                    for what, (seconds, rss, anonymous) in _rows(folder, config, client, server.pid):
                        print(f"| {what} | {seconds:.1f} | {rss / 2**20:.0f} | {anonymous / 2**20:.0f} |", flush=True)
            finally:
                server.terminate()


if __name__ == "__main__":
    main()
