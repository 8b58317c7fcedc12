"""``train``: a training run to copy. It saves, resumes in the middle of an epoch, and recovers from a loss spike."""

import torch
from prefect import flow
from pydantic import BaseModel, ConfigDict, Field
from torch.nn import functional

from ckpt_lib import CheckpointConfig, TrainingState
from ckpt_lib.analysis.results import ExperimentSummary
from prefect_checkpoints.flows._loss import LossWatch
from prefect_checkpoints.flows._store import require_absolute
from prefect_checkpoints.flows.digits import DigitsCNN, batches_of, evaluate, load_digits
from prefect_checkpoints.tasks import checkpointing, report_checkpoints, report_metrics, summarize_checkpoints


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
    config: CheckpointConfig = CheckpointConfig(),  # noqa: B008  frozen
    experiment_name: str = "digits",
    training: TrainingParameters = TrainingParameters(),  # noqa: B008  frozen
) -> ExperimentSummary:
    """Train a small CNN on handwritten digits, and save checkpoints as the configuration says.

    After a kill at any moment, the next run resumes from the newest checkpoint that verifies, and ends with the weights
    of an uninterrupted run. When the loss spikes, the training goes back to the newest healthy checkpoint, skips the
    batches since, and goes on at half the learning rate. Returns the summary of the experiment.

    Args:
        config: The store and its options.
        experiment_name: The experiment; created by the first save.
        training: How the model is trained.
    """
    require_absolute(config)
    torch.manual_seed(training.seed)
    model = DigitsCNN(training.channels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=training.learning_rate)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.95)
    data = load_digits(training.seed)
    loader, losses = batches_of(data, training.batch_size), LossWatch()
    state = TrainingState(model=model, optimizer=optimizer, scheduler=scheduler, data=loader, others={"losses": losses})

    with checkpointing(config, experiment_name, state) as run:
        for _ in run.epochs(training.epochs):
            for images, labels in loader:
                model.train()
                optimizer.zero_grad()
                loss = functional.cross_entropy(model(images), labels)
                if losses.is_spike(loss.item()):
                    run.roll_back(f"the loss is {loss.item():.4g} at step {run.step}")
                    _slow_down(optimizer, run.times_back)
                    continue
                torch.autograd.backward(loss)
                optimizer.step()
                run.count_step()
            scheduler.step()
            val_loss, val_accuracy = evaluate(model, data)
            metrics = {"train_loss": losses.end_epoch(), "val_loss": val_loss, "val_accuracy": val_accuracy}
            run.save(metrics, config=training.model_dump())

    report_checkpoints(config, experiment_name)
    report_metrics(config, experiment_name)
    return summarize_checkpoints(config, experiment_name)


def _slow_down(optimizer: torch.optim.Optimizer, times: int) -> None:
    """Halve the learning rate, which was just restored, ``times``. ``ExponentialLR`` goes on from what it finds."""
    for group in optimizer.param_groups:
        group["lr"] /= 2**times
