"""Takes a part of a data set for validation or testing: at random, stratified, and with whole groups."""

import warnings
from fractions import Fraction
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.utils import resample
from torch import Tensor

from ltfast.errors import InputError, SettingError

_MOST_FOLDS = 20  # the part is some of at most this many folds; more take longer


def partition(
    labels: Tensor, fraction: float, *, groups: NDArray[Any] | None = None, seed: int = 0, name: str = "fraction"
) -> tuple[Tensor, Tensor]:
    """Take a part of the images, and leave at least one image of each class that has any.

    Without groups, the part has the share of the images to the nearest image, and the number of images of each class in
    it differs from its share by at most one (by `sklearn.utils.resample`). A class with one image is not taken, which
    makes the part smaller.

    With groups, each group is either in the part or not; the sizes of the part and of its classes are as close as the
    groups allow (by `sklearn.model_selection.StratifiedGroupKFold`). A group that has all images of a class is not
    taken.

    Args:
        labels: the labels, (N,) int64.
        fraction: the share of the images to take, above 0 and below 1.
        groups: the group of each image, (N,) strings or integers.
        seed: the seed of the choice, from 0 to 2**32 - 1.
        name: the name of the setting with the fraction, for messages.

    Returns:
        The positions of the images that are left and of those that are taken, int64, in increasing order.

    Raises:
        SettingError: the fraction or the seed is out of its range.
        InputError: there are too few images or groups to take any.
    """
    if not 0 < fraction < 1:
        raise SettingError(name, "a number above 0 and below 1", fraction)
    if not 0 <= seed < 2**32:
        raise SettingError("seed", "an integer from 0 to 2**32 - 1", seed)
    classes = labels.numpy()
    taken = _images(classes, fraction, seed) if groups is None else _whole_groups(classes, fraction, groups, seed)
    if not taken.any():
        what = "images" if groups is None else "groups"
        raise InputError(
            f"cannot take {fraction:g} of {len(classes)} images{'' if groups is None else ' in whole groups'}, since "
            f"every class keeps at least one training image; use a larger share, or more {what} of each class",
            name=name,
        )
    return torch.from_numpy(np.flatnonzero(~taken)), torch.from_numpy(np.flatnonzero(taken))


def _images(classes: NDArray[np.int64], fraction: float, seed: int) -> NDArray[np.bool_]:
    """Which images are taken, (N,)."""
    taken = np.zeros(len(classes), bool)
    if count := round(fraction * len(classes)):
        drawn = resample(np.arange(len(classes)), replace=False, n_samples=count, random_state=seed, stratify=classes)
        taken[drawn] = True
        # a class that has lost all images gets one back; its share is still met within one image
        _, first = np.unique(np.where(taken, classes, -1), return_index=True)
        emptied = np.setdiff1d(classes, classes[~taken])
        taken[first[np.isin(classes[first], emptied) & taken[first]]] = False
    return taken


def _whole_groups(classes: NDArray[np.int64], fraction: float, groups: NDArray[Any], seed: int) -> NDArray[np.bool_]:
    """Which images are taken, (N,)."""
    _, group_of = np.unique(groups, return_inverse=True)
    sole = _sole_groups(classes, group_of)
    pool = np.flatnonzero(~np.isin(group_of, sole))
    taken = np.zeros(len(classes), bool)
    taken[pool[_fold(classes[pool], fraction, group_of[pool], seed)]] = True
    while len(emptied := np.setdiff1d(classes, classes[~taken])):
        # several groups had all images of a class together, and all were taken: the smallest goes back
        members, sizes = np.unique(group_of[taken], return_counts=True)
        has_class = np.isin(members, group_of[classes == emptied[0]])
        taken[group_of == members[has_class][sizes[has_class].argmin()]] = False
    return taken


def _sole_groups(classes: NDArray[np.int64], group_of: NDArray[np.int64]) -> NDArray[np.int64]:
    """The groups that have all images of a class."""
    pairs = np.unique(np.stack([classes, group_of], axis=1), axis=0)
    _, first, counts = np.unique(pairs[:, 0], return_index=True, return_counts=True)
    return pairs[first[counts == 1], 1]


def _fold(classes: NDArray[np.int64], fraction: float, group_of: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """The positions of the images in about this fraction of the groups."""
    number = len(np.unique(group_of))
    if number < 2:
        return np.arange(len(classes))
    most = min(_MOST_FOLDS, number)
    share = min(max(Fraction(fraction).limit_denominator(most), Fraction(1, most)), 1 - Fraction(1, most))
    # no class with an image for each fold: only sizes can be balanced
    strata = classes if np.bincount(classes).max() >= share.denominator else np.zeros_like(classes)
    folds = StratifiedGroupKFold(share.denominator, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")
        parts = [part for _, part in islice(folds.split(strata, strata, group_of), share.numerator)]
    taken = np.concatenate(parts)
    if number > most and fraction < 0.9 * share:  # less than one of the folds: a part of it
        taken = taken[_fold(classes[taken], float(fraction / share), group_of[taken], seed)]
    return taken
