"""Long tails: how many images of each class to keep, and which."""

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Profile = Literal["exponential", "pareto"]

PARETO_POWER = 6.0  # ImageNet-LT's


def exponential_counts(largest: float, num_classes: int, imbalance: float) -> list[int]:
    """Class counts that fall exponentially: `n_k = int(largest * (1 / imbalance) ** (k / (C - 1)))`.

    Source: Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019.

    Args:
        largest: the count of class 0, in images; may be fractional, as a mean count is.
        num_classes: C, at least 1. A single class keeps `int(largest)`.
        imbalance: the count of class 0 over that of class C - 1, at least 1.

    Raises:
        ValueError: an argument is out of its range.
    """
    _check(largest, num_classes, imbalance)
    # written exactly as the literature's code, so that rounding falls the same way
    return [int(largest * (1 / imbalance) ** (k / max(num_classes - 1.0, 1.0))) for k in range(num_classes)]


def pareto_counts(largest: float, num_classes: int, imbalance: float) -> list[int]:
    """Class counts that follow a Pareto distribution of power a = 6, as ImageNet-LT's do.

    The counts are the distribution's quantiles (type II, that is, starting at zero) at C evenly spaced ranks, stretched
    so that the first is `largest` and the last is `largest / imbalance`:

        q_k = ((k + 1) / C) ** (-1 / a) - 1
        n_k = int(n_min + (largest - n_min) * q_k / q_0),   n_min = largest / imbalance

    With ImageNet-LT's own numbers (1280 to 5 images, 1000 classes) this gives 404 many, 456 medium and 140 few classes
    and 121,449 images; the published list, which was drawn at random, has 385, 479, 136 and 115,846.

    Source: Liu et al., "Large-Scale Long-Tailed Recognition in an Open World", CVPR 2019, for the power; they publish
    the list and no formula.

    Args:
        largest: the count of class 0, in images; may be fractional, as a mean count is.
        num_classes: C, at least 1. A single class keeps `int(largest)`.
        imbalance: the count of class 0 over that of class C - 1, at least 1.

    Raises:
        ValueError: an argument is out of its range.
    """
    _check(largest, num_classes, imbalance)
    if num_classes == 1:
        return [int(largest)]
    quantiles = (np.arange(1, num_classes + 1) / num_classes) ** (-1 / PARETO_POWER) - 1
    smallest = largest / imbalance
    return [int(smallest + (largest - smallest) * share) for share in quantiles / quantiles[0]]


def long_tail_indices(labels: Tensor, num_classes: int, imbalance: float, profile: Profile = "exponential") -> Tensor:
    """The images that make a data set long-tailed: class 0 keeps the most, class C - 1 the fewest.

    The largest class keeps N / C images. Which images are kept is the literature's draw (LDAM, BCL, ProCo): numpy's
    legacy generator with seed 0 shuffles each class in turn and the first n_k stay.

    Args:
        labels: (N,) int64, in [0, C).
        num_classes: C.
        imbalance: the count of the largest class over that of the smallest, at least 1.
        profile: "exponential" (see `exponential_counts`) or "pareto" (see `pareto_counts`).

    Returns:
        (sum of n_k,) int64: positions in `labels`, class after class.

    Raises:
        ValueError: `imbalance` is below 1, the profile is unknown, or a class has fewer images than it should keep or
            would keep none.
    """
    if profile not in ("exponential", "pareto"):
        raise ValueError(f"profile: expected 'exponential' or 'pareto', got {profile!r}")
    make_counts = exponential_counts if profile == "exponential" else pareto_counts
    counts = make_counts(len(labels) / num_classes, num_classes, imbalance)
    classes = labels.numpy()
    random = np.random.RandomState(0)
    kept = []
    for label, count in enumerate(counts):
        (members,) = np.nonzero(classes == label)
        if count == 0:
            raise ValueError(
                f"imbalance: {imbalance:g} leaves class {label} without images; the largest class has {counts[0]}, "
                f"so expected an imbalance of at most {counts[0]}"
            )
        if count > len(members):
            raise ValueError(
                f"imbalance: class {label} has {len(members)} images and should keep {count} of them "
                f"({profile} profile, imbalance {imbalance:g}); expected a data set that is not long-tailed yet, or "
                "imbalance=None to take it as it is"
            )
        random.shuffle(members)
        kept.append(members[:count])
    return torch.from_numpy(np.concatenate(kept))


def _check(largest: float, num_classes: int, imbalance: float) -> None:
    if not (math.isfinite(largest) and largest > 0):
        raise ValueError(f"largest: expected a positive number of images, got {largest}")
    if num_classes < 1:
        raise ValueError(f"num_classes: expected at least 1, got {num_classes}")
    if not (math.isfinite(imbalance) and imbalance >= 1):
        raise ValueError(f"imbalance: expected a finite number of at least 1, got {imbalance}")
