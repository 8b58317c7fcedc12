"""What compression makes of real states: sizes, and the seconds of a save and a load, beside zipnn if installed.

    python -m benchmarks.compression --weights model.safetensors --steps 300 --rounds 5

Measures a transformer that is trained here with AdamW on the text of the documentation, its weights in two precisions,
the state of its optimizer, the weights of a model of others where ``--weights`` names a file, and noise. Sizes are the
same on every machine, but for what training rounds differently. Prints Markdown.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager

Compression = bool | Literal["zstd"]
Tensors = dict[str, torch.Tensor]

CHOICES: dict[str, Compression] = {"off": False, "zstd": "zstd", "True": True}
_BLOCK, _BATCH, _BYTES = 64, 8, 256
_ZIPNN_TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


class Stored:
    """Stands for a model: its state is a dict of tensors."""

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = tensors

    def state_dict(self) -> Tensors:
        return self.tensors

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        self.tensors = dict(state)


class TextModel(nn.Module):
    """Predicts the next byte of a text."""

    def __init__(self, width: int = 256, layers: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(_BYTES, width)
        self.position = nn.Embedding(_BLOCK, width)
        layer = nn.TransformerEncoderLayer(width, 8, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, _BYTES)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(text.shape[1])
        hidden = self.embedding(text) + self.position(torch.arange(text.shape[1]))
        return self.head(self.layers(hidden, mask=mask, is_causal=True))  # type: ignore[no-any-return]


def trained(steps: int) -> tuple[Tensors, Tensors]:
    """Return the weights of a model and the tensors of its optimizer's state after so many steps."""
    torch.manual_seed(0)
    folder = Path(__file__).parent.parent / "docs"
    text = torch.tensor(list(b"".join(path.read_bytes() for path in sorted(folder.rglob("*.md")))))
    model = TextModel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    for _ in range(steps):
        starts = torch.randint(len(text) - _BLOCK - 1, (_BATCH,)).tolist()
        batch = torch.stack([text[start : start + _BLOCK + 1] for start in starts])
        loss = nn.functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    print(f"trained for {steps} steps, to a loss of {loss.item():.2f}\n" if steps else "not trained\n")
    state = optimizer.state_dict()["state"]
    moments = {f"{number}.{name}": state[number][name] for number in state for name in ("exp_avg", "exp_avg_sq")}
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}, moments


def states(options: argparse.Namespace) -> Iterator[tuple[str, Tensors]]:
    """Yield what is measured, with its name."""
    weights, moments = trained(options.steps)
    for path in options.weights:
        from safetensors.torch import load_file

        theirs = {name: tensor for name, tensor in load_file(path).items() if tensor.is_floating_point()}
        yield f"{Path(path).parent.parent.name}, float32", {name: item.float() for name, item in theirs.items()}
        yield f"{Path(path).parent.parent.name}, bfloat16", {name: item.bfloat16() for name, item in theirs.items()}
    yield "trained weights, float32", weights
    yield "trained weights, bfloat16", {name: tensor.bfloat16() for name, tensor in weights.items()}
    yield "moments of AdamW, float32", moments
    yield "moments of AdamW before the first step", {name: torch.zeros_like(item) for name, item in moments.items()}
    yield "random bytes", {"noise": torch.randint(0, 256, (options.noise_mb * 10**6,), dtype=torch.uint8)}


def measured(tensors: Tensors, options: argparse.Namespace) -> Iterator[tuple[str, int, float, float]]:
    """Yield, for each choice in turn, the size of the payload and the medians of a save and a verified load."""
    with tempfile.TemporaryDirectory(prefix="compression-", dir=options.folder) as folder:
        managers = {name: _manager(f"{folder}/{name}", choice) for name, choice in CHOICES.items()}
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in CHOICES}
        for number in range(options.rounds + 1):  # the first round warms up
            for name, manager in managers.items():
                save = _timed(partial(manager.save_checkpoint, model=Stored(tensors), epoch=number))
                load = _timed(partial(manager.load_checkpoint, "latest", model=Stored({})))
                seconds[name].append((save, load))
        for name, manager in managers.items():
            saves, loads = zip(*seconds[name][1:], strict=True)
            size_bytes = manager.get_checkpoint("latest").file_size
            yield name, size_bytes, statistics.median(saves), statistics.median(loads)


def _manager(folder: str, choice: Compression) -> CheckpointManager:
    config = CheckpointConfig(
        checkpoint_dir=folder, compression=choice, backup_checkpoints=False, max_checkpoints=1, save_rng=False
    )
    return CheckpointManager(config, "run")


def _timed(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def zipnn_bytes(tensors: Tensors) -> int | None:
    """Return what zipnn makes of all tensors; ``None`` where it cannot be asked."""
    dtypes = {tensor.dtype for tensor in tensors.values()}
    if find_spec("zipnn") is None or not dtypes <= _ZIPNN_TYPES.keys():
        return None
    from zipnn import ZipNN

    data = b"".join(tensor.contiguous().view(torch.uint8).numpy().tobytes() for tensor in tensors.values())
    return len(ZipNN(input_format="byte", bytearray_dtype=_ZIPNN_TYPES[dtypes.pop()]).compress(bytearray(data)))


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", nargs="*", default=[], help="safetensors files of models")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--noise-mb", type=int, default=30)
    parser.add_argument("--folder", help="where to save; default: the folder for temporary files")
    options = parser.parse_args()
    rows = ["| state | plain | compression | size | of plain | save | load |", "|---|---|---|---|---|---|---|"]
    for name, tensors in states(options):
        plain = sum(tensor.nbytes for tensor in tensors.values())
        for choice, size_bytes, save, load in measured(tensors, options):
            sizes = f"{size_bytes / 1e6:.1f} MB | {size_bytes / plain:.3f}"
            rows.append(f"| {name} | {plain / 1e6:.1f} MB | {choice} | {sizes} | {save:.3f} s | {load:.3f} s |")
        if (theirs := zipnn_bytes(tensors)) is not None:
            rows.append(f"| {name} | {plain / 1e6:.1f} MB | zipnn | {theirs / 1e6:.1f} MB | {theirs / plain:.3f} | | |")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
