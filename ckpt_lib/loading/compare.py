"""Checkpoints side by side, as people name them, and with their tensors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache

from ckpt_lib.analysis.results import CheckpointComparison, TensorDifference
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.core.metadata import CheckpointMetadata
from ckpt_lib.core.payload_keys import MODEL_KEY
from ckpt_lib.core.wording import shown
from ckpt_lib.errors import ConfigError
from ckpt_lib.experiment.query import Catalogue
from ckpt_lib.experiment.selectors import split_experiment
from ckpt_lib.formats import Payload
from ckpt_lib.index.selection import check_metric_is_known
from ckpt_lib.loading.payload import read_payload


def compare_named(
    catalogue: Catalogue,
    names: Sequence[str],
    *,
    metrics: Collection[str] | None,
    tensors: bool,
    catalogue_of: Callable[[str], Catalogue],
) -> CheckpointComparison:
    """Line up the checkpoints that ``names`` stand for; see :func:`ckpt_lib.analysis.compare.compare`.

    ``catalogue_of`` returns the catalogue of another experiment of the store, for names such as ``run-7/best``.
    """
    from ckpt_lib.analysis.compare import compare  # pandas, only where it is used

    for argument, value in (("checkpoint_ids", names), ("metrics", () if metrics is None else metrics)):
        if isinstance(value, str) or not isinstance(value, Collection):
            raise ConfigError(f"{argument} must be a list", got=shown(value))
    own_name, get_catalogue = catalogue.experiment.name, cache(catalogue_of)
    compared: dict[str, tuple[Catalogue, Manifest]] = {}
    found: list[CheckpointMetadata] = []
    labels: list[str] = []
    for name in names:
        experiment, selector = split_experiment(name) if isinstance(name, str) else (None, name)
        is_own = experiment in (None, own_name)
        source = catalogue if is_own else get_catalogue(str(experiment))
        manifest = source.resolve(selector)
        found.append(source.describe(manifest))
        labels.append(manifest.checkpoint_id if is_own else f"{experiment}/{manifest.checkpoint_id}")
        compared[labels[-1]] = (source, manifest)
    for metric in metrics or ():
        check_metric_is_known(metric, found)
    comparison = compare(found, labels)
    if metrics is not None:
        lined_up = comparison["metrics_comparison"]
        comparison["metrics_comparison"] = {metric: lined_up[metric] for metric in metrics}
    if tensors:
        comparison["tensors_comparison"] = _compare_tensors(labels, compared)
    return comparison


def _compare_tensors(
    names: Sequence[str], compared: Mapping[str, tuple[Catalogue, Manifest]]
) -> dict[str, dict[str, TensorDifference]]:
    """Tell how the tensors of each further checkpoint differ from the first one's; two are loaded at a time."""
    from ckpt_lib.analysis.compare import compare_tensors  # torch, only where it is used

    def load(name: str) -> Payload:
        catalogue, manifest = compared[name]
        return read_payload(catalogue.experiment, manifest, verify=True, keys=[MODEL_KEY])

    first = load(names[0])
    return {name: compare_tensors(first, load(name)) for name in names[1:]}
