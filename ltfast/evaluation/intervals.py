"""Bootstrap intervals of the figures of an evaluation."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ltfast.evaluation.figures import weighted_figures
from ltfast.evaluation.outcome import Outcome

LEVEL = 0.95
RESAMPLES = 1000
# some seconds; intervals of more images are narrow
MOST_IMAGES, MOST_SCORES = 10_000, 4_000_000


def intervals(outcome: Outcome, groups: Mapping[str, Sequence[int]]) -> dict[str, list[float] | None] | None:
    """95 % percentile bootstrap intervals over the test images, of the overall figures and of the groups' mean recall.

    The same outcome gives the same intervals, bit for bit.

    Args:
        outcome: of N test images of C classes.
        groups: class indices of each group.

    Returns:
        The lower and the upper end by the name of the figure, in its unit; None for a figure that is None. None instead
        of all if there are no images, or more than `MOST_IMAGES`, or more than `MOST_SCORES` class scores.
    """
    count = len(outcome.labels)
    if not 0 < count <= MOST_IMAGES or outcome.scores.numel() > MOST_SCORES:
        return None
    drawn = np.random.default_rng(0).integers(count, size=(RESAMPLES, count))
    drawn += count * np.arange(RESAMPLES)[:, None]
    times = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
    figures = weighted_figures(outcome, torch.from_numpy(times.T.astype(np.float32, order="C")), groups)
    return {name: _interval(values) for name, values in figures.items()}


def _interval(values: Tensor | None) -> list[float] | None:
    if values is None or (known := values[~values.isnan()]).numel() == 0:
        return None
    ends: list[float] = np.quantile(known.numpy(), [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return ends
