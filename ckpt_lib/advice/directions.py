"""Whether a lower or a higher value of a metric is better, as far as its name tells."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ckpt_lib.core.monitor import Mode, Monitor

_NEITHER = re.compile(
    "lr|learning|epochs?|steps?|time|runtime|seconds?|duration|eta|samples|tokens|memory|norm|momentum|flos|throughput|"
    "fps|it|best"
)
"""Words in the names of values that say nothing about how good a checkpoint is; the best so far is that of another."""
_LOWER = re.compile(
    "loss|nll|error|err|perplexity|ppl|mae|mse|rmse|mape|wer|cer|ter|fid|bpb|bpc|bpd|kld|eer|lpips|brier|ece"
)
_HIGHER = re.compile(
    r"acc\d?|accuracy|top\d|f1|auc|auroc|auprc|m?ap\d*|m?iou|dice|bleu|sacrebleu|rouge[12l]?|meteor|precision|recall|"
    "score|reward|return|psnr|ssim|r2|mrr|ndcg|mcc|kappa|spearman|pearson"
)
_WORD = re.compile(r"[A-Z]?[a-z]+\d*|[A-Z]+\d*|\d+")


class Directions:
    """Of which metrics it is known whether a lower or a higher value is better: the monitored ones, and by name."""

    def __init__(self, monitors: Iterable[Monitor] = ()) -> None:
        self._known: dict[str, Mode | None] = {}
        for monitor in monitors:
            self._known.setdefault(monitor.metric, monitor.mode)

    def mode(self, metric: str) -> Mode | None:
        """Return the mode of a metric; ``None`` when its name does not tell, or it measures no quality."""
        if metric not in self._known:
            self._known[metric] = _by_name(metric)
        return self._known[metric]

    @staticmethod
    def is_quality(metric: str) -> bool:
        """Tell whether a metric may say how good a checkpoint is: a learning rate, for example, does not."""
        return not any(map(_NEITHER.fullmatch, _words(metric)))


def _by_name(metric: str) -> Mode | None:
    words = _words(metric)
    if any(map(_NEITHER.fullmatch, words)):
        return None
    if any(map(_LOWER.fullmatch, words)):
        return "min"
    return "max" if any(map(_HIGHER.fullmatch, words)) else None


def _words(metric: str) -> set[str]:
    return {word.lower() for word in _WORD.findall(metric)}
