"""What several test modules need: a tiny training run, fingerprints of state, snapshots, damage, child processes."""

from __future__ import annotations

import hashlib
import secrets
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from ckpt_lib import CheckpointManager
from ckpt_lib.core.manifest import Claim
from ckpt_lib.core.owners import Owner
from ckpt_lib.store.identity import IDENTITY_NAME
from tests.torture import fingerprints
from tests.warm import ROOT, Python

fingerprint = fingerprints.fingerprint


class MakeManager(Protocol):
    """The ``make_manager`` fixture."""

    def __call__(self, experiment_name: str = "run", **options: Any) -> CheckpointManager: ...


@dataclass(frozen=True)
class Parts:
    """A model with its optimizer and scheduler."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler

    def kwargs(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}


def build(seed: int = 0, width: int = 8) -> Parts:
    """Everything a run has, small, with buffers and with state in every part."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    return Parts(model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5))


def train(parts: Parts, epochs: Iterable[int]) -> None:
    """Train on data that depend on the epoch alone, so that runs can be repeated."""
    for epoch in epochs:
        generator = torch.Generator().manual_seed(epoch)
        inputs, targets = torch.randn(16, 4, generator=generator), torch.randn(16, 2, generator=generator)
        for _ in range(2):
            parts.optimizer.zero_grad()
            loss = nn.functional.mse_loss(parts.model(inputs), targets)
            torch.autograd.backward(loss)
            parts.optimizer.step()
        parts.scheduler.step()


def state_of(parts: Parts) -> str:
    """The fingerprint of model, optimizer and scheduler."""
    return fingerprint([part.state_dict() for part in (parts.model, parts.optimizer, parts.scheduler)])


def snapshot(folder: Path) -> dict[str, str]:
    """Every file and folder below ``folder`` with the digest of its bytes, whatever it is called."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


def without_locks(found: dict[str, str]) -> dict[str, str]:
    """A snapshot without what stores keep in their folders for themselves."""
    return {name: digest for name, digest in found.items() if not is_bookkeeping(name)}


def contents(folder: Path) -> dict[str, str]:
    """A snapshot of what people keep: without what stores need for themselves, and without records of ended saves."""
    return {name: digest for name, digest in without_locks(snapshot(folder)).items() if not _is_ended(folder / name)}


def _is_ended(path: Path) -> bool:
    return path.suffix == ".json" and path.is_file() and b'"state": "gone"' in path.read_bytes()


def is_bookkeeping(path: str) -> bool:
    """Whether a path leads to a lock, a clock or a temporary file."""
    return any(part.startswith(".ckpt-") and part != IDENTITY_NAME for part in Path(path).parts)


def leave_unfinished(folder: Path, data: bytes = b"half a payload", *, is_folder: bool = False) -> str:
    """What a process that was killed while it saved leaves in ``folder``: a claim, whose id is returned, and a file.

    Of a payload of several files, it was killed while it wrote the first of them.
    """
    checkpoint_id = "checkpoint_epoch_0000_step_000000_20231201_143022"
    claim = Claim(
        checkpoint_id=checkpoint_id,
        uid=secrets.token_hex(16),
        claim=secrets.token_hex(8),
        state="saving",
        owner=Owner.current().model_copy(update={"started": "0"}),  # its number was given to another process
        files=(f"{checkpoint_id}/" if is_folder else f"{checkpoint_id}.pt",),
    )
    path = folder / checkpoint_id / ".ckpt-tmp" / "half.tmp" if is_folder else folder / f"{checkpoint_id}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    (folder / f"{checkpoint_id}.json").write_bytes(claim.to_bytes())
    return checkpoint_id


def save(manager: CheckpointManager, epoch: int, loss: Any = 0.5, **options: Any) -> str:
    """Save a fresh tiny model; fails when the policy refuses."""
    options = {"metrics": {"val_loss": loss}, **options}
    checkpoint_id = manager.save_checkpoint(model=nn.Linear(2, 1), epoch=epoch, **options)
    assert checkpoint_id is not None
    return checkpoint_id


def ids(manager: CheckpointManager) -> list[str]:
    """The ids of the readable checkpoints, oldest first."""
    return [checkpoint.checkpoint_id for checkpoint in manager.list_checkpoints()]


def backup_ids(manager: CheckpointManager) -> list[str]:
    """The ids of the readable backups, oldest first."""
    return [checkpoint.checkpoint_id for checkpoint in manager.list_backups()]


def experiment_folder(manager: CheckpointManager) -> Path:
    """Where a manager's checkpoints lie."""
    return Path(manager.config.checkpoint_dir) / manager.experiment_name


def payload_path(manager: CheckpointManager, checkpoint_id: str) -> Path:
    return experiment_folder(manager) / f"{checkpoint_id}.pt"


def manifest_path(manager: CheckpointManager, checkpoint_id: str) -> Path:
    return experiment_folder(manager) / f"{checkpoint_id}.json"


def flip_bit(path: Path, position: int, bit: int = 0) -> None:
    """Alter one bit in place; ``position`` may count from the end."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


def truncate(path: Path, size_bytes: int) -> None:
    """Cut a file off."""
    path.write_bytes(path.read_bytes()[:size_bytes])


def start_python(code: str, *arguments: object) -> Python:
    """Start a child that runs ``code``, which finds ``arguments`` in ``sys.argv``; warnings are errors in it."""
    return Python(code, [str(argument) for argument in arguments])


def start_interpreter(code: str, *arguments: object, prefix: Iterable[str] = ()) -> subprocess.Popen[str]:
    """Start a new interpreter that does so, after a command ``prefix`` if there is one."""
    command = [*prefix, sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def run_python(code: str, *arguments: object, prefix: Iterable[str] = ()) -> str:
    """Run ``code`` in a child of its own and return what it printed; fails with what it said on stderr.

    With a ``prefix``, a command before the interpreter, the interpreter is a new one.
    """
    child = start_interpreter(code, *arguments, prefix=prefix) if prefix else start_python(code, *arguments)
    output, errors = child.communicate(timeout=120)
    assert child.returncode == 0, f"exit code {child.returncode}\n{output}\n{errors}"
    return output
