"""A program of its own that serves the deployment ``evaluate_checkpoint/evaluate``."""

from __future__ import annotations

from prefect.types.entrypoint import EntrypointType

from prefect_checkpoints.flows import evaluate_checkpoint

if __name__ == "__main__":
    evaluate_checkpoint.serve(name="evaluate", limit=2, entrypoint_type=EntrypointType.MODULE_PATH)
