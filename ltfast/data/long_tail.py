"""Subsampling to a long tail: the number of images of each class, and the choice of the images."""

import math
from bisect import bisect_left
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ltfast.errors import InputError, SettingError

Profile = Literal["exponential", "pareto", "step"]

PARETO_POWER = 6.0  # ImageNet-LT's


def exponential_counts(largest: float, num_classes: int, imbalance: float) -> list[int]:
    """Class counts that fall exponentially: `n_k = int(largest * (1 / imbalance) ** (k / (C - 1)))`.

    Source: Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019.

    Args:
        largest: the number of images of class 0; may be fractional, such as a mean count.
        num_classes: C, at least 1. A single class keeps `int(largest)`.
        imbalance: the ratio of the counts of class 0 and class C - 1, at least 1.

    Raises:
        InputError: an argument is out of its range.
    """
    _check(largest, num_classes, imbalance)
    # the same expression as in the published code, for the same rounding
    return [int(largest * (1 / imbalance) ** (k / max(num_classes - 1.0, 1.0))) for k in range(num_classes)]


def pareto_counts(largest: float, num_classes: int, imbalance: float) -> list[int]:
    """Class counts that follow a Pareto distribution with power a = 6, as in ImageNet-LT.

    The counts are the quantiles of the distribution (type II, which starts at zero) at C evenly spaced ranks, scaled so
    that the first is `largest` and the last is `largest / imbalance`:

        q_k = ((k + 1) / C) ** (-1 / a) - 1
        n_k = int(n_min + (largest - n_min) * q_k / q_0),   n_min = largest / imbalance

    With the parameters of ImageNet-LT (1280 to 5 images, 1000 classes), this gives 404 many, 456 medium and 140 few
    classes and 121,449 images. The published list was drawn at random; it has 385, 479 and 136 classes and 115,846
    images.

    Source: Liu et al., "Large-Scale Long-Tailed Recognition in an Open World", CVPR 2019, for the power. They publish
    the list but no formula.

    Args:
        largest: the number of images of class 0; may be fractional, such as a mean count.
        num_classes: C, at least 1. A single class keeps `int(largest)`.
        imbalance: the ratio of the counts of class 0 and class C - 1, at least 1.

    Raises:
        InputError: an argument is out of its range.
    """
    _check(largest, num_classes, imbalance)
    if num_classes == 1:
        return [int(largest)]
    quantiles = (np.arange(1, num_classes + 1) / num_classes) ** (-1 / PARETO_POWER) - 1
    smallest = largest / imbalance
    return [int(smallest + (largest - smallest) * share) for share in quantiles / quantiles[0]]


def step_counts(largest: float, num_classes: int, imbalance: float) -> list[int]:
    """Class counts with one step: the first half of the classes keeps `n_k = int(largest)`, the others have
    `n_k = int(int(largest) / imbalance)`. Of an odd number of classes, the middle one is among the others.

    Source: Buda et al., "A systematic study of the class imbalance problem in convolutional neural networks", Neural
    Networks 2018; Cao et al., NeurIPS 2019 (LDAM), whose code has it for even numbers of classes.

    Args:
        largest: the number of images of class 0; may be fractional, such as a mean count.
        num_classes: C, at least 1. A single class keeps `int(largest)`.
        imbalance: the ratio of the counts of class 0 and class C - 1, at least 1.

    Raises:
        InputError: an argument is out of its range.
    """
    _check(largest, num_classes, imbalance)
    whole = max(num_classes // 2, 1)
    # the same expression as in the published code, for the same rounding
    return [int(largest)] * whole + [int(int(largest) * (1 / imbalance))] * (num_classes - whole)


_COUNTS: dict[str, Callable[[float, int, float], list[int]]] = {
    "exponential": exponential_counts,
    "pareto": pareto_counts,
    "step": step_counts,
}


def long_tail_indices(labels: Tensor, num_classes: int, imbalance: float, profile: Profile = "exponential") -> Tensor:
    """Choose the images of the standard long-tailed split: class 0 keeps the most images, class C - 1 the fewest.

    The largest class keeps N / C images. If a class has too few images for that, the largest class keeps the most
    images for which every n_k is available; the profile is unchanged. The images are chosen as in the published code
    (LDAM, BCL, ProCo): numpy's legacy generator with seed 0 shuffles each class in turn, and the first n_k are kept.

    Args:
        labels: (N,) int64, in [0, C).
        num_classes: C.
        imbalance: the ratio of the counts of the largest and the smallest class, at least 1.
        profile: "exponential" (see `exponential_counts`), "pareto" (see `pareto_counts`) or "step" (see `step_counts`).

    Returns:
        The positions of the kept images in `labels`, (sum of n_k,) int64, sorted by class.

    Raises:
        InputError: `imbalance` is below 1, the profile is unknown, or a class has no images or would keep none.
    """
    if profile not in _COUNTS:
        raise SettingError("profile", "'exponential', 'pareto' or 'step'", profile)
    classes = labels.numpy()
    available = np.bincount(classes, minlength=num_classes).tolist()
    if 0 in available:
        raise InputError(f"labels: expected images of every class, but class {available.index(0)} has none")
    counts = _fitting_counts(available, imbalance, profile)
    if 0 in counts:
        # the imbalance cannot exceed the number of images
        candidates = range(1, math.ceil(min(imbalance, len(labels) + 1)))
        most = bisect_left(candidates, True, key=lambda tried: 0 in _fitting_counts(available, tried, profile))
        raise InputError(
            f"{imbalance:g} leaves class {counts.index(0)} without images; expected at most {most}, or None "
            "(`none` on the command line) to use all images",
            name="imbalance",
        )
    random = np.random.RandomState(0)
    kept = []
    for label, count in enumerate(counts):
        (members,) = np.nonzero(classes == label)
        random.shuffle(members)
        kept.append(members[:count])
    return torch.from_numpy(np.concatenate(kept))


def _fitting_counts(available: list[int], imbalance: float, profile: Profile) -> list[int]:
    """The profile's counts for the mean count, or for the largest integer that fits if a class has too few images."""

    def counts_for(largest: float) -> list[int]:
        return _COUNTS[profile](largest, len(available), imbalance)

    def too_many(largest: float) -> bool:
        return any(count > images for count, images in zip(counts_for(largest), available, strict=True))

    mean = sum(available) / len(available)
    if not too_many(mean):
        return counts_for(mean)
    return counts_for(bisect_left(range(1, math.ceil(mean)), True, key=too_many))


def _check(largest: float, num_classes: int, imbalance: float) -> None:
    if not (math.isfinite(largest) and largest > 0):
        raise InputError(f"largest: expected a positive number of images, got {largest}")
    if num_classes < 1:
        raise InputError(f"num_classes: expected at least 1, got {num_classes}")
    if not (math.isfinite(imbalance) and imbalance >= 1):
        raise SettingError("imbalance", "a finite number of at least 1", imbalance)
