"""Takes a part of a data set for validation or testing: at random, stratified, and with whole groups.

The part is a share of the images, or one of the folds of a cross-validation.
"""

import warnings
from fractions import Fraction
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
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
    _check_seed(seed)
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


def take_fold(
    labels: Tensor, folds: int, fold: int, *, groups: NDArray[Any] | None = None, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Take one fold of the images, and leave at least one image of each class that has any.

    Each image is in one fold, with the other images of its group, and the classes have about the same shares in each
    fold (by `sklearn.model_selection.StratifiedKFold` and `StratifiedGroupKFold`). An image that is alone in its class
    is in no fold, and neither is a group that has all images of a class.

    Args:
        labels: the labels, (N,) int64.
        folds: the number of folds, at least 2.
        fold: the number of the fold to take, from 1 to `folds`.
        groups: the group of each image, (N,) strings or integers.
        seed: the seed of the folds, from 0 to 2**32 - 1.

    Returns:
        The positions of the images that are left and of those that are taken, int64, in increasing order.

    Raises:
        SettingError: a number is out of its range.
        InputError: there are too few images or groups for this number of folds.
    """
    if folds < 2:
        raise SettingError("folds", "at least 2", folds)
    if not 1 <= fold <= folds:
        raise SettingError("fold", f"a number from 1 to {folds}, the number of folds", fold)
    _check_seed(seed)
    classes = labels.numpy()
    group_of = np.arange(len(classes)) if groups is None else np.unique(groups, return_inverse=True)[1]
    pool = np.flatnonzero(~np.isin(group_of, _sole_groups(classes, group_of)))
    most = min(np.bincount(classes[pool], minlength=1).max(), len(np.unique(group_of[pool])))
    if folds > most:
        what = "images of the largest class" if groups is None else "images of the largest class and the groups"
        raise InputError(f"expected at most {most}, the {what} that can be tested, got {folds}", name="folds")
    splitter = (StratifiedKFold if groups is None else StratifiedGroupKFold)(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")
        parts = splitter.split(classes[pool], classes[pool], None if groups is None else group_of[pool])
        _, part = next(islice(parts, fold - 1, None))
    taken = np.zeros(len(classes), bool)
    taken[pool[part]] = True
    _give_back(classes, taken, group_of)
    if not taken.any():
        raise InputError(f"fold {fold} of {folds} has no images; expected fewer folds", name="folds")
    return torch.from_numpy(np.flatnonzero(~taken)), torch.from_numpy(np.flatnonzero(taken))


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**32:
        raise SettingError("seed", "an integer from 0 to 2**32 - 1", seed)


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
    _give_back(classes, taken, group_of)
    return taken


def _give_back(classes: NDArray[np.int64], taken: NDArray[np.bool_], group_of: NDArray[np.int64]) -> None:
    """Leave at least one group of each class, in place."""
    while len(emptied := np.setdiff1d(classes, classes[~taken])):
        # several groups had all images of a class together, and all were taken: the smallest goes back
        members, sizes = np.unique(group_of[taken], return_counts=True)
        has_class = np.isin(members, group_of[classes == emptied[0]])
        taken[group_of == members[has_class][sizes[has_class].argmin()]] = False


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
