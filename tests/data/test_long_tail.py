import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ltfast.data import class_groups, exponential_counts, long_tail_indices, pareto_counts, step_counts

CIFAR10_COUNTS = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
PROFILES = {"exponential": exponential_counts, "pareto": pareto_counts, "step": step_counts}


def literature_indices(labels, imbalance, profile):
    """LDAM's code with the global generator and its own loop."""
    targets = np.asarray(labels)
    num_classes = len(set(targets.tolist()))
    largest, factor = int(len(targets) / num_classes), 1 / imbalance
    if profile == "exponential":
        numbers = [int(largest * factor ** (c / (num_classes - 1.0))) for c in range(num_classes)]
    else:
        numbers = [int(largest) for _ in range(num_classes // 2)]
        numbers += [int(largest * factor) for _ in range(num_classes // 2)]
    np.random.seed(0)
    kept = []
    for c, number in enumerate(numbers):
        index = np.flatnonzero(targets == c)
        np.random.shuffle(index)
        kept.extend(index[:number].tolist())
    return kept


def test_cifar10_counts_of_the_literature():
    assert exponential_counts(5000, 10, 100) == CIFAR10_COUNTS


@pytest.mark.parametrize("profile", ["exponential", "step"])
@pytest.mark.parametrize("imbalance", [1, 10, 100.0, 3.7])
def test_indices_are_the_literatures(imbalance, profile):
    labels = np.random.RandomState(3).permutation(np.repeat(np.arange(10), 500))
    chosen = long_tail_indices(torch.from_numpy(labels), 10, imbalance, profile)
    state = np.random.get_state()
    expected = literature_indices(labels, imbalance, profile)
    np.random.set_state(state)
    assert chosen.dtype == torch.int64
    assert chosen.tolist() == expected


def test_full_size_draw():
    labels = torch.from_numpy(np.random.RandomState(5).permutation(np.repeat(np.arange(10), 5000)))
    chosen = long_tail_indices(labels, 10, 100)
    assert torch.bincount(labels[chosen]).tolist() == CIFAR10_COUNTS
    assert len(chosen.unique()) == len(chosen)


def test_the_draw_ignores_and_keeps_the_global_state():
    labels = torch.arange(4).repeat(50)
    np.random.seed(11)
    first = long_tail_indices(labels, 4, 5)
    after = np.random.random()
    np.random.seed(11)
    assert after == np.random.random()
    assert torch.equal(first, long_tail_indices(labels, 4, 5))


@given(
    profile=st.sampled_from(sorted(PROFILES)),
    smallest=st.integers(1, 50),
    imbalance=st.floats(1, 300),
    num_classes=st.integers(2, 300),
)
def test_counts_fall_from_largest_to_smallest(profile, smallest, imbalance, num_classes):
    largest = smallest * imbalance
    counts = PROFILES[profile](largest, num_classes, imbalance)
    assert len(counts) == num_classes
    assert all(a >= b for a, b in pairwise(counts))
    assert counts[0] == int(largest)
    assert smallest - 1 <= counts[-1] <= smallest  # int() of a number that rounding may put slightly below


@given(num_classes=st.integers(3, 100), imbalance=st.floats(1.5, 300))
def test_exponential_counts_have_a_constant_ratio(num_classes, imbalance):
    counts = np.array(exponential_counts(1e9, num_classes, imbalance), dtype=float)
    ratios = counts[1:] / counts[:-1]
    np.testing.assert_allclose(ratios, (1 / imbalance) ** (1 / (num_classes - 1)), rtol=1e-6)


def test_pareto_resembles_imagenet_lt():
    counts = pareto_counts(1280, 1000, 256)
    assert (counts[0], counts[-1]) == (1280, 5)
    assert sum(counts) == 121_449  # as documented; the published list has 115,846 images
    groups = {name: len(labels) for name, labels in class_groups(counts).items()}
    assert groups == {"many": 404, "medium": 456, "few": 140}  # the published list has 385, 479 and 136


def test_pareto_falls_faster_at_the_head_than_exponential():
    assert sum(pareto_counts(5000, 100, 10_000)) < 5000 * 100 / 4
    assert pareto_counts(1000, 5, 1) == [1000] * 5


def test_a_step_halves_the_classes():
    assert step_counts(5000, 10, 100) == [5000] * 5 + [50] * 5
    assert step_counts(500.9, 5, 10) == [500, 500, 50, 50, 50]  # the middle class is cut
    labels = torch.tensor([0] * 40 + [1] * 60 + [2] * 3 + [3] * 97)
    assert torch.bincount(labels[long_tail_indices(labels, 4, 10, "step")]).tolist() == [39, 39, 3, 3]


@pytest.mark.parametrize("profile", PROFILES)
def test_single_class(profile):
    assert PROFILES[profile](7, 1, 100) == [7]
    assert sorted(long_tail_indices(torch.zeros(7, dtype=torch.int64), 1, 100, profile).tolist()) == list(range(7))


@pytest.mark.parametrize("imbalance", [0.5, 0, -1, float("nan"), float("inf")])
@pytest.mark.parametrize("profile", PROFILES)
def test_imbalance_out_of_range(profile, imbalance):
    with pytest.raises(ValueError, match="imbalance: expected a finite number of at least 1, got"):
        PROFILES[profile](100, 10, imbalance)


def test_other_bad_arguments():
    with pytest.raises(ValueError, match="num_classes: expected at least 1, got 0"):
        exponential_counts(100, 0, 10)
    with pytest.raises(ValueError, match="largest: expected a positive number of images, got 0"):
        pareto_counts(0, 10, 10)
    with pytest.raises(ValueError, match="profile: expected 'exponential', 'pareto' or 'step', got 'steps'"):
        long_tail_indices(torch.arange(10), 10, 2, "steps")


def test_a_class_that_would_be_empty():
    with pytest.raises(
        ValueError, match=r"imbalance: 100 leaves class 6 without images; .* at most 20, or None \(`none`"
    ):
        long_tail_indices(torch.arange(10).repeat(20), 10, 100)


@given(
    available=st.lists(st.integers(1, 60), min_size=2, max_size=12),
    imbalance=st.floats(1, 1e9),
    profile=st.sampled_from(sorted(PROFILES)),
)
@example(available=[49, 49], imbalance=50, profile="exponential")  # 49 * (1 / 49) is below 1 in floating point
@settings(deadline=None)
def test_any_classes_are_cut_to_the_profile_or_told_what_can_be(available, imbalance, profile):
    labels = torch.arange(len(available)).repeat_interleave(torch.tensor(available))

    def cut(imbalance):
        return torch.bincount(labels[long_tail_indices(labels, len(available), imbalance, profile)]).tolist()

    try:
        counts = cut(imbalance)
    except ValueError as error:
        counts = cut(imbalance := int(re.search(r"at most (\d+)", str(error)).group(1)))
    assert min(counts) > 0
    assert all(kept <= images for kept, images in zip(counts, available, strict=True))
    mean = sum(available) / len(available)
    assert counts in [PROFILES[profile](largest, len(available), imbalance) for largest in (mean, *range(1, 61))]


def test_slightly_uneven_classes_keep_the_profile():
    available = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]  # MNIST, whose mean is 6000
    labels = torch.arange(10).repeat_interleave(torch.tensor(available))
    counts = torch.bincount(labels[long_tail_indices(labels, 10, 100)]).tolist()
    assert counts == exponential_counts(5923, 10, 100)


def test_as_many_as_fit():
    labels = torch.tensor([0] * 10 + [1] * 90 + [2] * 100)
    assert torch.bincount(labels[long_tail_indices(labels, 3, 2)]).tolist() == [10, 7, 5]
    labels = torch.tensor([0] * 100 + [1] * 60 + [2] * 10)
    assert torch.bincount(labels[long_tail_indices(labels, 3, 2)]).tolist() == [21, 14, 10]


def test_a_class_without_images():
    with pytest.raises(ValueError, match="labels: expected images of every class, but class 1 has none"):
        long_tail_indices(torch.tensor([0, 2]), 3, 1)


def test_class_groups():
    groups = class_groups([5000, 101, 100, 20, 19, 0])
    assert groups == {"many": [0, 1], "medium": [2, 3], "few": [4, 5]}
    with pytest.raises(ValueError, match="class_counts: expected counts of at least 0, got -1 for class 1"):
        class_groups([3, -1])


def test_groups_by_other_minima():
    assert class_groups([5, 1], (9, 4, 2)) == {"group0": [], "group1": [0], "group2": [], "group3": [1]}
    assert class_groups([7, 3, 7], (5,)) == {"group0": [0, 2], "group1": [1]}
