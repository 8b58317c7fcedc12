"""Failures that are logged instead of raised, since what they fail is already safe or can be done without."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from ckpt_lib.errors import CheckpointError, is_store_failure

logger = logging.getLogger("ckpt_lib")


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
