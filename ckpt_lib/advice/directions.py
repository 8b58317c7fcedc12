"""Whether a lower or a higher value of a metric is better, as far as its name tells."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ckpt_lib.core.monitor import Mode, Monitor

_NEITHER = frozenset(
    ["lr", "learning", "epoch", "epochs", "step", "steps", "time", "runtime", "seconds", "second", "duration", "eta"]
    + ["samples", "tokens", "memory", "norm", "momentum", "flos", "throughput", "fps", "it", "best"]
)
"""Words in the names of values that say nothing about how good a checkpoint is; the best so far is another's value."""
_LOWER = frozenset(
    ["loss", "nll", "error", "err", "perplexity", "ppl", "mae", "mse", "rmse", "mape", "wer", "cer", "ter", "fid"]
    + ["bpb", "bpc", "bpd", "kld", "eer", "lpips", "brier", "ece"]
)
_HIGHER = frozenset(
    ["acc", "accuracy", "acc1", "acc5", "top1", "top5", "f1", "auc", "auroc", "auprc", "map", "map50", "iou", "miou"]
    + ["dice", "bleu", "sacrebleu", "rouge", "rouge1", "rouge2", "rougel", "meteor", "precision", "recall", "score"]
    + ["reward", "return", "psnr", "ssim", "r2", "mrr", "ndcg", "mcc", "kappa", "spearman", "pearson", "exactmatch"]
)
_WORD = re.compile(r"[A-Z]?[a-z]+\d*|[A-Z]+\d*|\d+")


class Directions:
    """Of which metrics it is known whether a lower or a higher value is better: the monitored ones, and by name."""

    def __init__(self, monitors: Iterable[Monitor] = ()) -> None:
        self._known: dict[str, Mode | None] = {}
        for monitor in monitors:
            self._known.setdefault(monitor.metric, monitor.mode)
        self._unknown: dict[str, None] = {}

    def mode(self, metric: str) -> Mode | None:
        """Return the mode of a metric; ``None`` when its name does not tell, or it measures no quality."""
        if metric not in self._known:
            self._known[metric] = _by_name(metric)
        return self._known[metric]

    @staticmethod
    def is_quality(metric: str) -> bool:
        """Tell whether a metric may say how good a checkpoint is: a learning rate, for example, does not."""
        return not _NEITHER.intersection(_words(metric))


def _by_name(metric: str) -> Mode | None:
    words = _words(metric)
    if _NEITHER.intersection(words):
        return None
    if _LOWER.intersection(words):
        return "min"
    return "max" if _HIGHER.intersection(words) else None


def _words(metric: str) -> set[str]:
    return {word.lower() for word in _WORD.findall(metric)}
