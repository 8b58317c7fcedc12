"""What tests of cleanups share: a policy that keeps nothing, and the cleaner of another process."""

from __future__ import annotations

from typing import Any

from ckpt_lib import CheckpointManager
from ckpt_lib.policies.retention import KeepNewest

NOTHING = KeepNewest(count=0)
PLAN = "ckpt_lib.maintenance.cleanup.plan_retention"


def cleaner(manager: CheckpointManager, **options: Any) -> CheckpointManager:
    """A manager of another process: it has loaded and saved nothing, and knows nothing to be intact."""
    return CheckpointManager(manager.config.model_copy(update=options), manager.experiment_name)
