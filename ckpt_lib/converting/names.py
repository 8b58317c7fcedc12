"""The names of formats and types that checkpoints are converted to: light to import, for descriptions need no more."""

from __future__ import annotations

from typing import Literal

TargetFormat = Literal["torch", "safetensors", "hf-folder", "lightning", "hf-trainer", "accelerate"]
"""``torch`` a file of ``torch.save``; ``safetensors`` one file, or several with an index; ``hf-folder`` what
``from_pretrained`` reads; ``lightning`` a ``.ckpt`` of Lightning; ``hf-trainer`` a folder that the ``Trainer`` of
Transformers resumes from; ``accelerate`` one for ``Accelerator.load_state``."""

OF_WEIGHTS: tuple[TargetFormat, ...] = ("safetensors", "hf-folder")
"""Formats that have no place for anything but the weights of a model."""
OF_TRAININGS: tuple[TargetFormat, ...] = ("hf-trainer", "accelerate")
"""Formats that are never for the weights alone."""

TargetType = Literal["bf16", "bfloat16", "fp16", "float16", "half", "fp32", "float32", "fp64", "float64"]
"""The types that weights are cast to, by each of their names."""
