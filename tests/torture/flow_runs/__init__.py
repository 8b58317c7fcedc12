"""A training flow whose process is killed, and which is run again as the same flow run.

Flow runs are forked from a process that has imported Prefect and has not used it, beside a server of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.torture.rows import Outcome, Row


def flow_crashes(count: int, seed: str, folder: Path) -> Outcome:
    """Kill the processes of flow runs ``count`` times in all; each is run again until it has ended."""
    from deployments.server import prefect_server  # a client of its own, which no other row needs

    with prefect_server(folder / "prefect") as environment:
        command = [sys.executable, "-m", __name__, str(count), seed, str(folder / "store")]
        root = Path(__file__).parents[3]
        paths = os.pathsep.join([str(root), *filter(None, [environment.get("PYTHONPATH")])])
        settings = {"PREFECT_LOGGING_TO_API_ENABLED": "false", "PREFECT_LOGGING_LEVEL": "ERROR", "PYTHONPATH": paths}
        run = subprocess.run(command, env=environment | settings, cwd=root, capture_output=True, check=False)
    if run.returncode:
        return Outcome(violations=[f"exit code {run.returncode}: {run.stderr.decode(errors='replace')}"])
    return Outcome(**json.loads(run.stdout.splitlines()[-1]))


ROWS = [
    Row(
        number=38,
        fault="the process of a training flow is killed, and the flow run is run again",
        must_hold="one checkpoint for each (run, step), and the weights of an uninterrupted run",
        unit="kills",
        count=100,
        sample=2,
        run=flow_crashes,
        needs_server=True,
    )
]
