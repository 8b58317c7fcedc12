"""How a command ended, told from what is known of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_lib.launch.outcome import classify, oom_kill_count
from ckpt_lib.launch.report import Outcome

TORCHRUN = """\
E1129 torch/distributed/elastic/multiprocessing/api.py:988] failed (exitcode: {code}) local_rank: 1 (pid: 123)
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
train.py FAILED
------------------------------------------------------------
Failures:
[1]:
  rank      : 0 (local_rank: 0)
  exitcode  : 1 (pid: 122)
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  rank      : 1 (local_rank: 1)
  exitcode  : {code} (pid: 123)
============================================================"""
TOLD = "torch.distributed.elastic.multiprocessing.api.SignalException: Process 77 got signal: 15"
CUDA = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
CPU = "RuntimeError: [enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to"


def traceback(*errors: str, between: str = "", prefix: str = "") -> str:
    """Python's report of errors, with ``between`` between each two of them."""
    one = "Traceback (most recent call last):\n  File 'train.py', line 1, in f\n    raise MemoryError or not\n"
    text = f"\n{between}\n\n".join(f"{one}{error}" for error in errors)
    return "\n".join(f"{prefix}{line}" for line in text.splitlines())


FORK = "fork: Cannot allocate memory (ignored), retrying"
BUG = "pkg.Diverged: the loss"
HANDLING = "During handling of the above exception, another exception occurred:"
CAUSE = "The above exception was the direct cause of the following exception:"
TORCHRUN_ERROR = "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: "


@pytest.mark.parametrize(
    ("output", "outcome"),
    [
        (f"{FORK}\n{traceback(BUG)}", "failed"),
        (f"{traceback(CUDA)}\nsmaller batches\n{traceback(BUG)}", "failed"),
        (f"{FORK}\nretried", "out of memory"),
        (traceback(BUG, CUDA, between=HANDLING), "out of memory"),
        (traceback(CUDA, BUG, between=HANDLING), "out of memory"),
        (traceback(CPU, BUG, BUG, between=CAUSE), "out of memory"),
        (traceback(CUDA, "OSError: at exit", between="Exception ignored in: <function f>"), "out of memory"),
        (traceback(CUDA, TORCHRUN_ERROR), "out of memory"),
        (traceback(CUDA, prefix="[rank1]: ") + "\n" + traceback(BUG, prefix="[rank0]: "), "out of memory"),
        (traceback(CUDA, BUG, prefix="[default1]:[rank1]: "), "failed"),
        (traceback("RuntimeError: Caught OutOfMemoryError", CPU, between="Original "), "out of memory"),
    ],
)
def test_the_last_error_of_each_rank_counts(output: str, outcome: Outcome) -> None:
    """A program may survive an error of memory, or a line about it; what that error led to is still its doing."""
    found = classify(1, output.splitlines(), stop_reason=None, is_hung=False, oom_kills=0)
    assert found.outcome == outcome


@pytest.mark.parametrize(
    ("code", "output", "oom_kills", "outcome", "evidence"),
    [
        (0, "", 0, "done", "exit code 0"),
        (0, CUDA, 1, "done", "exit code 0"),
        (1, "Traceback", 0, "failed", "exit code 1"),
        (1, "Traceback", 3, "failed", "exit code 1"),
        (255, "", 0, "failed", "exit code 255"),
        (143, "", 0, "preempted", "SIGTERM"),
        (-15, "", 0, "preempted", "SIGTERM"),
        (130, "", 0, "preempted", "SIGINT"),
        (-2, "", 0, "preempted", "SIGINT"),
        (-9, "", 0, "killed", "SIGKILL"),
        (137, "", 0, "killed", "SIGKILL"),
        (-11, "", 1, "killed", "SIGSEGV"),
        (-9, "", 1, "out of memory", "the kernel has killed 1"),
        (137, "", 2, "out of memory", "the kernel has killed 2"),
        (1, CUDA, 0, "out of memory", "its output says: torch.OutOfMemoryError: CUDA"),
        (1, CPU, 0, "out of memory", "DefaultCPUAllocator"),
        (1, "Traceback\n  x = f()\nMemoryError", 0, "out of memory", "MemoryError"),
        (1, "a run about MemoryErrors", 0, "failed", "exit code 1"),
        (-6, "terminate called after throwing an instance of 'std::bad_alloc'", 0, "out of memory", "bad_alloc"),
        (1, TORCHRUN.format(code=-9), 0, "killed", "torchrun reports exit code -9 of a rank: SIGKILL"),
        (1, TORCHRUN.format(code=-9), 1, "out of memory", "the kernel"),
        (1, TORCHRUN.format(code=143), 0, "preempted", "torchrun reports exit code 143 of a rank"),
        (1, TORCHRUN.format(code=1), 0, "failed", "torchrun reports exit code 1 of a rank"),
        (1, f"{CUDA}\n{TORCHRUN.format(code=1)}", 0, "out of memory", "CUDA out of memory"),
        (1, TOLD, 0, "preempted", "SIGTERM"),
        (None, "", 0, "killed", "supervisor"),
    ],
)
def test_an_ending_is_told_by_its_evidence(
    code: int | None, output: str, oom_kills: int, outcome: Outcome, evidence: str
) -> None:
    """Exit codes of programs, shells and torchrun; the kernel's counter; the last lines."""
    found = classify(code, output.splitlines(), stop_reason=None, is_hung=False, oom_kills=oom_kills)
    assert found.outcome == outcome
    assert evidence in found.evidence


@given(st.none() | st.integers(-64, 255), st.integers(0, 3))
def test_what_was_stopped_is_never_done_nor_failed(code: int | None, oom_kills: int) -> None:
    """Many programs end with 0 when they are asked to stop; their training is not done for that."""
    found = classify(code, [CUDA], stop_reason="asked", is_hung=False, oom_kills=oom_kills)
    assert found == ("preempted", "asked")
    found = classify(code, [CUDA], stop_reason="no new checkpoint for 30 min", is_hung=True, oom_kills=oom_kills)
    assert found == ("hung", "no new checkpoint for 30 min")


@given(st.none() | st.integers(-200, 300), st.lists(st.text(max_size=40), max_size=5))
def test_every_exit_code_has_an_outcome(code: int | None, output: list[str]) -> None:
    """Numbers that are no signals included; only 0 is done."""
    found = classify(code, output, stop_reason=None, is_hung=False, oom_kills=0)
    assert (found.outcome == "done") == (code == 0)
    assert found.evidence


def test_the_kernel_counts_what_it_kills() -> None:
    """A number, whatever the machine tells; it does not change by itself."""
    assert oom_kill_count() >= 0
