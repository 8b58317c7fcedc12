"""What the package logs, and how that gets along with forks."""

from __future__ import annotations

import logging

import pytest

from ckpt_lib.core.logs import logger
from tests.helpers import run_python

_FORKS_WHILE_IT_LOGS = """
import logging, os, signal, threading, time
from ckpt_lib.core.logs import logger

class Handler(logging.Handler):
    inner = threading.Lock()

    def emit(self, record):
        with self.inner:
            time.sleep(0.001)

logging.getLogger("ckpt_lib").addHandler(Handler())

def log():
    while True:
        logger.error("a background save failed")

threading.Thread(target=log, daemon=True).start()
for _ in range(20):
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # a child that hangs is ended by it
        logger.error("in the child")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


def test_a_child_forked_while_a_thread_logs_can_log() -> None:
    """A handler's own lock is never held when the process forks: a save that fails in the child would not end."""
    run_python(_FORKS_WHILE_IT_LOGS)


def test_a_message_names_the_line_that_logged_it(caplog: pytest.LogCaptureFixture) -> None:
    """The place in a record is the caller's, not that of the logger around it."""
    with caplog.at_level(logging.INFO, "ckpt_lib"):
        logger.info("here")
    assert [record.pathname for record in caplog.records] == [__file__]
