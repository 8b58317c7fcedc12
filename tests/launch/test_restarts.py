"""When a command is restarted, and when not any more."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_lib.launch.report import LaunchAttempt, LaunchReport, Outcome
from ckpt_lib.launch.restarts import LONGEST_DELAY_SECONDS, RestartPolicy

RESTARTED: list[Outcome] = ["failed", "hung", "killed", "out of memory"]


def attempts(*made: bool, outcome: Outcome = "failed") -> list[LaunchAttempt]:
    """Attempts that made a checkpoint, or did not."""
    return [
        LaunchAttempt(
            number=number,
            outcome=outcome,
            evidence="evidence",
            exit_code=1,
            was_killed=False,
            started_at=datetime.now(UTC),
            seconds=1.0,
            checkpoint_ids=(f"checkpoint {number}",) if has_made else (),
            last_lines=(),
        )
        for number, has_made in enumerate(made, start=1)
    ]


@pytest.mark.parametrize("outcome", ["done", "preempted"])
def test_what_is_done_or_was_asked_to_stop_is_not_restarted(outcome: Outcome) -> None:
    """Whatever the limits are."""
    assert RestartPolicy(9, 9).conclusion(attempts(True, outcome=outcome))


@pytest.mark.parametrize("outcome", RESTARTED)
def test_everything_else_is_restarted_up_to_a_limit(outcome: Outcome) -> None:
    """So many restarts, however well the run gets on in between."""
    policy = RestartPolicy(max_restarts=2)
    assert policy.conclusion(attempts(True, True, outcome=outcome)) is None
    assert policy.conclusion(attempts(True, True, True, outcome=outcome)) == "no restart is left of 2"


@given(st.lists(st.booleans(), min_size=1, max_size=12), st.integers(0, 4))
def test_a_crash_loop_ends(made: list[bool], limit: int) -> None:
    """As many attempts in a row without a checkpoint as allowed, and one more; a checkpoint begins the count anew."""
    policy = RestartPolicy(max_restarts=100, max_fruitless_restarts=limit)
    in_a_row = next((at for at, has_made in enumerate(reversed(made)) if has_made), len(made))
    assert (policy.conclusion(attempts(*made)) is None) == (in_a_row <= limit)


def test_the_wait_grows_without_checkpoints() -> None:
    """It doubles with each attempt that made none, up to a limit, and begins anew after a checkpoint."""
    policy = RestartPolicy(delay_seconds=10)
    delays = [policy.delay(attempts(True, *[False] * count)) for count in range(8)]
    assert delays == [10, 20, 40, 80, 160, LONGEST_DELAY_SECONDS, LONGEST_DELAY_SECONDS, LONGEST_DELAY_SECONDS]
    assert policy.delay(attempts(False, False, True)) == 10
    assert RestartPolicy(delay_seconds=1000).delay(attempts(*[False] * 2000)) == 1000


def test_a_report_says_each_thing_once() -> None:
    """What stopped the launch is in the evidence already; what made it the last attempt is not."""
    stopped = [attempts(True)[0].model_copy(update={"evidence": "the launch was asked to stop (TerminationSignal)"})]
    assert str(report(stopped, "the launch was asked to stop")).count("asked to stop") == 1
    failed = report(attempts(True, False), "no restart is left of 1")
    assert str(failed) == "failed: evidence, 1 restart, 1 new checkpoint; no restart is left of 1"
    assert failed.progress == "1 restart, 1 new checkpoint"


def report(made: list[LaunchAttempt], conclusion: str) -> LaunchReport:
    return LaunchReport(
        experiment_name="run", command=("train",), launch_id="some-id", attempts=tuple(made), conclusion=conclusion
    )
