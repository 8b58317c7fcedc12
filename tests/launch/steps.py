"""The model and the steps of the training of two ranks, and what it comes to without any interruption."""

from __future__ import annotations

import torch
from torch import nn

SAVE_EVERY = 5
RANKS = 2


def build() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    return model, torch.optim.AdamW(model.parameters(), lr=0.01)


def batch(step: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The data of a rank, which depend on the step alone."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return torch.randn(8, 4, generator=generator), torch.randn(8, 2, generator=generator)


def trained(last_step: int) -> dict[str, torch.Tensor]:
    """The weights after so many steps, by one process that averages the gradients itself."""
    model, optimizer = build()
    for step in range(1, last_step + 1):
        optimizer.zero_grad()
        for rank in range(RANKS):
            inputs, targets = batch(step, rank)
            torch.autograd.backward(nn.functional.mse_loss(model(inputs), targets) / RANKS)
        optimizer.step()
    return model.state_dict()
