"""Images are taken for validation and testing: stratified, with whole groups, and by a seed."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ltfast.data.partition import partition, take_fold
from ltfast.errors import InputError, SettingError

LABELS = st.lists(st.integers(0, 7), min_size=1, max_size=80)
FRACTIONS = st.floats(0.01, 0.99)
SEEDS = st.integers(0, 2**32 - 1)


def divided(labels, fraction, groups=None, seed=0):
    """The two parts, as numpy arrays; None if no image can be taken."""
    labels = torch.tensor(labels)
    groups = None if groups is None else np.array(groups)
    try:
        left, taken = partition(labels, fraction, groups=groups, seed=seed)
    except InputError:
        return None
    assert left.dtype == taken.dtype == torch.int64
    assert sorted(left.tolist() + taken.tolist()) == list(range(len(labels)))  # each image once
    assert left.tolist() == sorted(left.tolist())
    assert taken.tolist() == sorted(taken.tolist())
    assert len(taken)
    assert set(labels[left].tolist()) == set(labels.tolist())  # every class keeps an image
    again = partition(labels, fraction, groups=groups, seed=seed)
    assert torch.equal(again[0], left)
    assert torch.equal(again[1], taken)
    return left.numpy(), taken.numpy()


@settings(deadline=None)
@given(LABELS, FRACTIONS, SEEDS)
def test_stratified_within_one_image(labels, fraction, seed):
    parts = divided(labels, fraction, seed=seed)
    counts = np.bincount(labels, minlength=8)
    drawn = round(fraction * len(labels)) / len(labels)  # the share that whole images can have
    if parts is None:
        assert all(count * drawn < 1 or count == 1 for count in counts)
        return
    taken = np.bincount(np.array(labels)[parts[1]], minlength=8)
    assert np.all(np.abs(taken - counts * drawn) <= 1 + 1e-9)
    assert np.all(np.abs(taken - counts * fraction) < 1.5)  # another half image from rounding the whole part


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12)), min_size=1, max_size=80), FRACTIONS, SEEDS)
def test_groups_stay_whole(images, fraction, seed):
    labels, groups = zip(*images, strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parts = divided(labels, fraction, groups, seed)
    if parts is None:  # each group has all images of a class
        assert all(
            any({groups[i] for i in range(len(labels)) if labels[i] == label} == {group} for label in set(labels))
            for group in set(groups)
        )
        return
    left, taken = (set(np.array(groups)[part].tolist()) for part in parts)
    assert not left & taken
    words = divided(labels, fraction, [f"camera {group:02}" for group in groups], seed)
    assert np.array_equal(words[1], parts[1])


def test_a_class_in_few_groups_keeps_one():
    """Both groups of class 1 could be taken; one of them stays."""
    labels = [0] * 40 + [1] * 4
    groups = [*np.arange(40) // 4, 20, 20, 21, 21]
    for seed in range(20):
        left, _ = divided(labels, 0.9, groups, seed)
        assert 1 in np.array(labels)[left]


@pytest.mark.parametrize("fraction", [0.02, 0.04, 0.1, 0.15, 0.2, 0.3, 0.5, 0.8])
def test_many_groups_are_stratified(fraction):
    random = np.random.default_rng(0)
    groups = random.integers(0, 400, 8000)
    labels = random.choice(5, 8000, p=[0.5, 0.25, 0.15, 0.07, 0.03])
    _, taken = divided(labels, fraction, groups)
    assert len(taken) / 8000 == pytest.approx(fraction, rel=0.1)
    expected = fraction * np.bincount(labels)
    assert np.all(np.abs(np.bincount(labels[taken]) - expected) <= np.maximum(0.2 * expected, 2))


def test_seeds_differ():
    labels = torch.arange(100) % 3
    groups = np.arange(100) // 2
    for own in (None, groups):
        parts = {tuple(partition(labels, 0.3, groups=own, seed=seed)[1].tolist()) for seed in range(5)}
        assert len(parts) == 5


def test_a_large_set_takes_no_image_of_a_class_that_has_one():
    labels = [0] * 900 + list(range(1, 101))
    _, taken = divided(labels, 0.1)
    assert set(np.array(labels)[taken]) == {0}
    assert len(taken) == pytest.approx(90, abs=1)


@pytest.mark.parametrize(
    ("labels", "groups", "message"),
    [
        ([0, 1, 2], None, "cannot take 0.5 of 3 images, since every class .*; use a larger share, or more images"),
        ([0, 0, 1, 1], [7, 7, 8, 8], "cannot take 0.5 of 4 images in whole groups, since .*, or more groups of each"),
    ],
)
def test_what_is_impossible(labels, groups, message):
    groups = None if groups is None else np.array(groups)
    with pytest.raises(InputError, match=f"^validation: {message}"):
        partition(torch.tensor(labels), 0.5, groups=groups, name="validation")


def every_fold(labels, folds, groups=None, seed=0):
    """The fold of each image, -1 for images that no fold has."""
    of_image = np.full(len(labels), -1)
    for fold in range(1, folds + 1):
        left, taken = take_fold(torch.tensor(labels), folds, fold, groups=groups, seed=seed)
        assert left.dtype == taken.dtype == torch.int64
        assert sorted(left.tolist() + taken.tolist()) == list(range(len(labels)))
        assert set(torch.tensor(labels)[left].tolist()) == set(labels)  # every class keeps an image
        assert (of_image[taken] == -1).all()  # each image in one fold at most
        of_image[taken] = fold
    return of_image


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 5), min_size=10, max_size=80), st.integers(2, 6), SEEDS)
def test_folds_are_stratified(labels, folds, seed):
    counts = np.bincount(labels)
    if folds > counts[counts > 1].max(initial=0):
        with pytest.raises(InputError, match=r"^folds: expected at most"):
            every_fold(labels, folds, seed=seed)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        of_image = every_fold(labels, folds, seed=seed)
    for label, count in enumerate(counts):
        own = of_image[np.array(labels) == label]
        if count == 1:
            assert own.tolist() == [-1]
        elif count:
            sizes = np.bincount(own, minlength=folds + 1)[1:]
            assert sizes.sum() == count
            assert sizes.max() - sizes.min() <= 1
    assert np.array_equal(of_image, every_fold(labels, folds, seed=seed))


def test_folds_keep_groups_whole():
    random = np.random.default_rng(0)
    groups = np.array([f"camera {i}" for i in random.integers(0, 60, 600)])
    labels = random.choice(3, 600, p=[0.7, 0.2, 0.1])
    labels[groups == "camera 7"] = 3  # all images of its class
    of_image = every_fold(labels.tolist(), 5, groups)
    folds = {group: set(of_image[groups == group].tolist()) for group in groups}
    assert all(len(found) == 1 for found in folds.values())
    assert folds["camera 7"] == {-1}
    assert set(of_image.tolist()) == {-1, 1, 2, 3, 4, 5}
    for label in range(3):
        sizes = np.bincount(of_image[(labels == label) & (of_image > 0)], minlength=6)[1:]
        assert sizes.sum() == (labels == label).sum()
        assert sizes.max() <= 2 * sizes.min()
    assert not np.array_equal(of_image, every_fold(labels.tolist(), 5, groups, seed=1))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 8)), min_size=20, max_size=80), st.integers(2, 3), SEEDS)
def test_any_groups_stay_whole(images, folds, seed):
    labels, groups = map(list, zip(*images, strict=True))
    try:
        of_image = every_fold(labels, folds, np.array(groups), seed)
    except InputError:
        return
    for group in set(groups):
        assert len(set(of_image[np.array(groups) == group].tolist())) == 1


@pytest.mark.parametrize(
    ("folds", "fold", "message"),
    [
        (1, 1, "folds: expected at least 2, got 1"),
        (3, 0, "fold: expected a number from 1 to 3, the number of folds, got 0"),
        (3, 4, "fold: expected a number from 1 to 3"),
        (5, 1, "folds: expected at most 4, the images of the largest class that can be tested, got 5"),
    ],
)
def test_folds_that_are_impossible(folds, fold, message):
    with pytest.raises((SettingError, InputError), match=message):
        take_fold(torch.tensor([0, 0, 0, 0, 1, 1, 2]), folds, fold)
