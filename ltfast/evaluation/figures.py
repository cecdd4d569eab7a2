"""The overall figures of an evaluation, of the test images or of many resamples of them at once.

Rates are in percent: accuracies, precision, recall, F1, areas under curves, and the calibration error. The negative
log-likelihood (in nats) and the Brier score (from 0 to 2) are not rates.

torchmetrics and scikit-learn, with which the tests compare the figures, compute one resample and one class at a time:
minutes for 1,000 resamples, or for 1,000 classes.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ltfast.evaluation.outcome import Outcome

BINS = 15  # of the calibration error

_OF_PROBABILITIES = (
    "macro_auroc",
    "macro_average_precision",
    "negative_log_likelihood",
    "brier_score",
    "expected_calibration_error",
)


def overall(outcome: Outcome) -> dict[str, float | None]:
    """The overall figures of N test images of C classes, in the units of this module.

    Returns:
        `top1`; `top5` if there are more than 5 classes; `balanced_accuracy`, the mean recall; `macro_f1` and
        `weighted_f1`, the mean F1 where classes count equally, or by their test images; `macro_auroc` and
        `macro_average_precision`, the means of each class against the rest; `negative_log_likelihood`; `brier_score`,
        the mean squared error of the probabilities, summed over the classes; `expected_calibration_error`, that of the
        predicted class in 15 bins of equal width.

        Means over classes are over those that have test images; `macro_f1` also has those that are predicted, with an
        F1 of 0. A value is None if there is nothing to compute it from, or if it needs probabilities and a score is not
        finite.
    """
    figures = weighted_figures(outcome, torch.ones(len(outcome.labels), 1), {})
    return {name: None if value is None or value.isnan() else value.item() for name, value in figures.items()}


def weighted_figures(
    outcome: Outcome, weights: Tensor, groups: Mapping[str, Sequence[int]]
) -> dict[str, Tensor | None]:
    """The overall figures of weighted test images, and the mean recall of each group of classes.

    Args:
        outcome: of N test images.
        weights: how often each image counts, (N, B) float32: integers with sums below 2**24.
        groups: class indices of each group.

    Returns:
        See `overall`; (B,) float64 each, NaN where there is nothing to compute it from.
    """
    labels, hits = outcome.labels, outcome.hits
    classes = outcome.scores.shape[1]
    total = weights.sum(0).double()
    doubles = weights.double()

    def mean(values: Tensor) -> Tensor:
        return values.double() @ doubles / total

    support = _sums(weights, labels, classes)
    found = _sums(weights[hits], labels[hits], classes)
    predicted = _sums(weights, outcome.predicted, classes)
    recall = found / support  # NaN for a class without images in a resample
    f1 = 2 * found / (support + predicted)
    result: dict[str, Tensor | None] = {"top1": 100 * mean(hits)}
    if classes > 5:
        result["top5"] = 100 * mean(outcome.top5_hits)
    result["balanced_accuracy"] = 100 * recall.nanmean(0)
    result["macro_f1"] = 100 * f1.nanmean(0)
    result["weighted_f1"] = 100 * (support * f1).nansum(0) / total
    result.update({name: 100 * recall[list(members)].nanmean(0) for name, members in groups.items()})
    if not outcome.finite:
        return {**result, **dict.fromkeys(_OF_PROBABILITIES)}
    auroc, precision = _areas(outcome, weights, support, total)
    result["macro_auroc"], result["macro_average_precision"] = 100 * auroc.nanmean(0), 100 * precision.nanmean(0)
    result["negative_log_likelihood"] = mean(outcome.negative_log_likelihood)
    result["brier_score"] = mean(outcome.brier_score)
    bins = (BINS * outcome.confidence).long().clamp(max=BINS - 1)
    gaps = _sums((outcome.confidence - hits.double())[:, None] * doubles, bins, BINS)
    result["expected_calibration_error"] = 100 * gaps.abs().sum(0) / total
    return result


def _sums(values: Tensor, indices: Tensor, count: int) -> Tensor:
    """The sums of the rows (M, B) with each index, (count, B) float64. Sums of integers in float32 are exact."""
    return torch.zeros(count, values.shape[1], dtype=values.dtype).index_add_(0, indices, values).double()


def _areas(outcome: Outcome, weights: Tensor, support: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """The area under the ROC curve and the average precision of each class against the rest, (C, B) float64; NaN for a
    class without images, and the former also for one without images of other classes.

    The former is the share of pairs of an image of the class and another image in which the former has the greater
    probability; equal ones count half. The latter is the mean, over the images of the class, of the share of the class
    in the images with at least the same probability.
    """
    auroc = torch.full(support.shape, torch.nan, dtype=torch.float64)
    precision = auroc.clone()
    for c in outcome.labels.unique().tolist():
        own = outcome.labels == c
        chances = outcome.probabilities[:, c].contiguous()
        thresholds = chances[own].unique()
        reached = torch.searchsorted(thresholds, chances, right=True)  # the number of thresholds up to each image's
        count = len(thresholds)

        def of_each(some: Tensor, reached: Tensor = reached, count: int = count) -> Tensor:
            """The weights of some images, between each threshold and the next, (thresholds, B)."""
            return _sums(weights[some], reached[some], count + 1)[1:]

        above = reached > 0
        tied = above & ~own & (chances == thresholds[(reached - 1).clamp(min=0)])
        weight = of_each(own)
        own_reach, all_reach = _from_the_end(weight), _from_the_end(of_each(above))
        others = total - support[c]
        won = others - (all_reach - own_reach) + of_each(tied) / 2
        auroc[c] = (weight * won).sum(0) / (support[c] * others)
        # no image, no weight: 0 / 0
        precision[c] = (weight * own_reach / all_reach).nansum(0) / support[c]
    return auroc, precision


def _from_the_end(values: Tensor) -> Tensor:
    """The sum of each row and all after it."""
    return values.flip(0).cumsum(0).flip(0)
