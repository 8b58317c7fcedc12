"""Configure by ``examples/checkpoints.yaml``; the environment overrides it, as ``CKPT_MAX_CHECKPOINTS=2`` does."""

from pathlib import Path

from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager


def main() -> None:
    from_file = CheckpointConfig.from_yaml(Path(__file__).with_name("checkpoints.yaml"))
    from_environment = CheckpointConfig.from_env().model_dump(exclude_unset=True)
    config = CheckpointConfig(**from_file.model_dump(exclude_unset=True) | from_environment)
    manager = CheckpointManager(config, "configured")
    for epoch, accuracy in enumerate([0.5, 0.7, 0.6, 0.8], start=1):
        saved = manager.save_checkpoint(model=nn.Linear(2, 1), epoch=epoch, metrics={"accuracy": accuracy})
        print(f"epoch {epoch}: {saved or 'not better, not saved'}")
    print(f"kept {len(manager.checkpoint_ids())}, at most {config.max_checkpoints}")


if __name__ == "__main__":
    main()
