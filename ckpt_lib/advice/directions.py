"""Whether a lower or a higher value of a metric is better, as far as its name tells."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ckpt_lib.core.metadata import Metric
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
_BEST_SO_FAR = frozenset(("best", "lowest", "highest", "min", "max"))
_OF_TRAINING = frozenset(("train", "training", "trn", "tr"))
_OF_VALIDATION = frozenset(("val", "valid", "validation", "eval", "evaluation", "test", "testing", "dev", "holdout"))
_LOSS = re.compile("loss|losses|nll|perplexity|ppl|mae|mse|rmse|bpb|bpc|bpd|kld")
"""What is taken for a measure of the training itself, unless the name says that it is of a validation."""
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


def is_of_validation(metric: str) -> bool:
    """Tell whether the name of a metric says that it was measured on other data than those of the training."""
    return not _OF_VALIDATION.isdisjoint(_words(metric))


def _is_of_training(metric: str) -> bool:
    words = _words(metric)
    return not _OF_TRAINING.isdisjoint(words) or (any(map(_LOSS.fullmatch, words)) and _OF_VALIDATION.isdisjoint(words))


def deciding(metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    """Return the metrics by which a checkpoint of another program may be compared; empty where it may not.

    Nobody has said which metric matters. A loss of the training decides nothing: it falls while the model becomes
    worse. A checkpoint is not compared at all when it has a metric of which it is not known whether less is better, or
    one that tells the best so far without its own value.
    """
    found = {}
    words = {name: _words(name) for name in metrics}
    for name, value in metrics.items():
        measured = words[name] - _BEST_SO_FAR
        if any(map(_NEITHER.fullmatch, measured)):
            continue
        if measured != words[name]:
            if measured not in words.values():
                return {}
        elif not _is_of_training(name):
            if _by_name(name) is None:
                return {}
            found[name] = value
    return found


def _by_name(metric: str) -> Mode | None:
    words = _words(metric)
    if any(map(_NEITHER.fullmatch, words)):
        return None
    if any(map(_LOWER.fullmatch, words)):
        return "min"
    return "max" if any(map(_HIGHER.fullmatch, words)) else None


def _words(metric: str) -> set[str]:
    return {word.lower() for word in _WORD.findall(metric)}
