"""The logger of this package, and failures that are logged instead of raised because what matters is safe."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ckpt_lib.errors import CheckpointError, is_store_failure

_emitting = threading.RLock()


class ForkSafeLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger that keeps the process from forking while a thread is inside a handler.

    A handler may hold a lock of its own, as that of Prefect's console does, which ``logging`` does not release in a
    forked child: the child would wait for ever at its first message.
    """

    def log(self, level: int, msg: object, *args: Any, **kwargs: Any) -> None:
        with _emitting:
            super().log(level, msg, *args, **{"stacklevel": 2, **kwargs})

    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
        return msg, kwargs  # as they are: events bring an ``extra`` of their own


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_emitting.acquire, after_in_parent=_emitting.release, after_in_child=_emitting.release)

logger = ForkSafeLogger(logging.getLogger("ckpt_lib"))


@contextmanager
def failures_logged(what: str) -> Iterator[None]:
    """Log any failure of ``what``."""
    try:
        yield
    except Exception as error:  # whatever it is, a policy of the caller's among them: the checkpoint is safe
        logger.error("%s failed: %s", what, error, exc_info=not isinstance(error, CheckpointError | OSError))


@contextmanager
def store_failures_logged(what: str) -> Iterator[None]:
    """Log a failure of the store, and raise any other."""
    try:
        yield
    except Exception as error:
        if not is_store_failure(error):
            raise
        logger.warning("%s failed: %s", what, error)
