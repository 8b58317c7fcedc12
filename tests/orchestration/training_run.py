"""The demo's training, as a process that a test can kill: says what was acknowledged, line by line."""

from __future__ import annotations

import sys
from typing import Any

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.saving.background import SaveHandle
from prefect_checkpoints.flows import TrainingParameters, train


def main(checkpoint_dir: str, epochs: int) -> None:
    save = CheckpointManager.save_checkpoint_async

    def announced(self: CheckpointManager, *arguments: Any, **options: Any) -> SaveHandle:
        handle = save(self, *arguments, **options)
        handle.add_done_callback(lambda _: print("acknowledged", options["epoch"], flush=True))
        return handle

    CheckpointManager.save_checkpoint_async = announced  # type: ignore[method-assign]
    config = CheckpointConfig(checkpoint_dir=checkpoint_dir, max_checkpoints=4, max_backups=2)
    train(config, "digits", TrainingParameters(epochs=epochs, batch_size=512))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
