"""``train``: a training run that saves by the save task and resumes where it stopped."""

import torch
from prefect import flow, get_run_logger
from pydantic import BaseModel, ConfigDict, Field

from ckpt_lib import CheckpointConfig
from ckpt_lib.analysis.results import ExperimentSummary
from prefect_checkpoints.flows._store import require_absolute
from prefect_checkpoints.flows.digits import DigitsCNN, evaluate, load_digits, train_epoch
from prefect_checkpoints.tasks import (
    report_checkpoints,
    report_metrics,
    resume_training,
    save_checkpoint,
    summarize_checkpoints,
)
from prefect_checkpoints.tasks._progress import progress_artifact
from prefect_checkpoints.tasks.report import artifact_key


class TrainingParameters(BaseModel):
    """Parameters of the training; nothing else influences its result."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(default=8, ge=1, description="Train up to this epoch, also after a resume.")
    batch_size: int = Field(default=64, ge=1, description="Images per step.")
    learning_rate: float = Field(default=1e-3, gt=0, description="Learning rate of AdamW; it decays by 5 % per epoch.")
    channels: int = Field(default=32, ge=1, description="Width of the network.")
    seed: int = Field(default=0, ge=0, description="Seed of weights, and of split and order of the data.")


@flow(name="train", flow_run_name="train {experiment_name}")
def train(
    experiment_name: str = "digits",
    checkpoints: CheckpointConfig = CheckpointConfig(),  # noqa: B008  frozen
    training: TrainingParameters = TrainingParameters(),  # noqa: B008  frozen
) -> ExperimentSummary:
    """Train a small CNN on handwritten digits, and save checkpoints as the configuration says.

    After a kill at any moment, the next run resumes from the newest checkpoint that verifies, and ends with the weights
    of an uninterrupted run. Returns the summary of the experiment.

    Args:
        experiment_name: The experiment; created by the first save.
        checkpoints: The store and its options.
        training: How the model is trained.
    """
    require_absolute(checkpoints)
    logger = get_run_logger()
    torch.manual_seed(training.seed)
    model = DigitsCNN(training.channels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=training.learning_rate)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.95)
    data = load_digits(training.seed)

    resumed = resume_training(checkpoints, experiment_name, model=model, optimizer=optimizer, scheduler=scheduler)
    first, step = (resumed["next_epoch"], resumed["step"]) if resumed else (1, 0)
    if resumed:
        logger.info("Resumed from %s, continuing with epoch %d", resumed["checkpoint_id"], first)

    remaining = range(first, training.epochs + 1)
    key = artifact_key("training", checkpoints, experiment_name)
    with progress_artifact(key, f"Training {experiment_name} to epoch {training.epochs}", len(remaining)) as advance:
        for epoch in remaining:
            train_loss, batches = train_epoch(
                model, optimizer, data, batch_size=training.batch_size, seed=training.seed + epoch
            )
            scheduler.step()
            step += batches
            val_loss, val_accuracy = evaluate(model, data)
            metrics = {"train_loss": train_loss, "val_loss": val_loss, "val_accuracy": val_accuracy}
            logger.info("Epoch %d: val_loss %.4f, val_accuracy %.4f", epoch, val_loss, val_accuracy)
            save_checkpoint(
                checkpoints,
                experiment_name,
                model=model,
                optimizer=optimizer,
                scheduler=scheduler,
                epoch=epoch,
                step=step,
                metrics=metrics,
                run_config=training.model_dump(),
            )
            advance(1)

    report_checkpoints(checkpoints, experiment_name)
    report_metrics(checkpoints, experiment_name)
    return summarize_checkpoints(checkpoints, experiment_name)
