"""The model and the data of the training flow: a small CNN on scikit-learn's 1,797 handwritten digits of 8 by 8 pixels.

The data ship with scikit-learn (``pip install 'prefect-checkpoints[demo]'``); E. Alpaydin and C. Kaynak, "Optical
Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998, https://doi.org/10.24432/C50P49.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from ckpt_lib import ResumableLoader

VALIDATION_FRACTION = 0.2
MAX_PIXEL = 16.0


class DigitsCNN(nn.Module):
    """Two convolutions and a linear layer: images of shape (N, 1, 8, 8) to logits of shape (N, 10)."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, channels, kernel_size=3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, 2 * channels, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Linear(2 * channels * 4 * 4, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.features(images).flatten(1))
        return logits


@dataclass(frozen=True)
class Digits:
    """Images of shape (N, 1, 8, 8) scaled to 0..1, and labels 0..9 of shape (N,), in two disjoint parts."""

    train_images: torch.Tensor
    train_labels: torch.Tensor
    validation_images: torch.Tensor
    validation_labels: torch.Tensor


def load_digits(seed: int) -> Digits:
    """Read the data and split them; the same seed gives the same split."""
    from sklearn import datasets

    bunch = datasets.load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / MAX_PIXEL
    labels = torch.tensor(bunch.target, dtype=torch.long)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    cut = int(len(images) * VALIDATION_FRACTION)
    validation, train = order[:cut], order[cut:]
    return Digits(images[train], labels[train], images[validation], labels[validation])


def batches_of(data: Digits, batch_size: int) -> ResumableLoader[tuple[torch.Tensor, ...]]:
    """Return a loader of batches of images and labels of the training part, in another order each epoch."""
    dataset = TensorDataset(data.train_images, data.train_labels)
    return ResumableLoader(DataLoader(dataset, batch_size, shuffle=True), deterministic=True)


@torch.no_grad()
def evaluate(model: nn.Module, data: Digits) -> tuple[float, float]:
    """Mean loss and accuracy on the validation part."""
    model.eval()
    logits = model(data.validation_images)
    loss = functional.cross_entropy(logits, data.validation_labels).item()
    accuracy = (logits.argmax(dim=1) == data.validation_labels).float().mean().item()
    return loss, accuracy


@torch.no_grad()
def worst_digit(payload: Mapping[str, Any]) -> dict[str, float]:
    """Evaluate a checkpoint of ``train``: its accuracy on the digit that it recognises worst."""
    training = payload["config"]
    model = DigitsCNN(training["channels"])
    model.load_state_dict(payload["model_state_dict"])
    model.eval()
    data = load_digits(training["seed"])
    is_right = model(data.validation_images).argmax(dim=1) == data.validation_labels
    accuracies = [is_right[data.validation_labels == digit].float().mean().item() for digit in range(10)]
    return {"worst_digit_accuracy": min(accuracies)}
