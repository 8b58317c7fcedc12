"""Checkpoints side by side, as people name them, and with their tensors."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ckpt_lib.analysis.results import CheckpointComparison, TensorDifference
from ckpt_lib.core.payload_keys import MODEL_KEY
from ckpt_lib.core.wording import shown
from ckpt_lib.errors import ConfigError
from ckpt_lib.experiment.query import Catalogue
from ckpt_lib.formats import Payload
from ckpt_lib.index.selection import check_metric_is_known
from ckpt_lib.loading.payload import read_payload


def compare_named(
    catalogue: Catalogue, names: Sequence[str], *, metrics: Collection[str] | None, tensors: bool
) -> CheckpointComparison:
    """Line up the checkpoints that ``names`` stand for; see :func:`ckpt_lib.analysis.compare.compare`."""
    from ckpt_lib.analysis.compare import compare  # pandas, only where it is used

    for argument, value in (("checkpoint_ids", names), ("metrics", () if metrics is None else metrics)):
        if isinstance(value, str) or not isinstance(value, Collection):
            raise ConfigError(f"{argument} must be a list", got=shown(value))
    found = [catalogue.describe(catalogue.resolve(name)) for name in names]
    for metric in metrics or ():
        check_metric_is_known(metric, found)
    comparison = compare(found)
    if metrics is not None:
        lined_up = comparison["metrics_comparison"]
        comparison["metrics_comparison"] = {metric: lined_up[metric] for metric in metrics}
    if tensors:
        comparison["tensors_comparison"] = _compare_tensors(catalogue, [item.checkpoint_id for item in found])
    return comparison


def _compare_tensors(catalogue: Catalogue, checkpoint_ids: Sequence[str]) -> dict[str, dict[str, TensorDifference]]:
    """Tell how the tensors of each further checkpoint differ from the first one's; two are loaded at a time."""
    from ckpt_lib.analysis.compare import compare_tensors  # torch, only where it is used

    def load(checkpoint_id: str) -> Payload:
        manifest = catalogue.resolve(checkpoint_id)
        return read_payload(catalogue.experiment, manifest, verify=True, keys=[MODEL_KEY])

    first_id, *other_ids = checkpoint_ids
    first = load(first_id)
    return {checkpoint_id: compare_tensors(first, load(checkpoint_id)) for checkpoint_id in other_ids}
