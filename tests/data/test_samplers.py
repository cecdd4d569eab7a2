import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch.utils.data import TensorDataset

from ltfast.data import (
    ArrayDataset,
    ClassSampler,
    DualSampler,
    InstanceSampler,
    SeededViews,
    class_balanced_probabilities,
    class_groups,
    effective_number_probabilities,
    group_preferred_probabilities,
    make_sampler,
    square_root_probabilities,
)
from ltfast.data.samplers import SAMPLERS as NAMES

COUNTS = [300, 150, 0, 60, 30, 12, 3]  # two many, one empty, two medium and two few classes
ORDER = torch.from_numpy(np.random.RandomState(0).permutation(sum(COUNTS)))
LABELS = torch.arange(len(COUNTS)).repeat_interleave(torch.tensor(COUNTS))[ORDER]
SAMPLERS = {
    "instance": {},
    "class_balanced": {},
    "square_root": {},
    "effective_number": {},
    "group_preferred": {"stage": 2},
    "dual": {},
}


def make(name, labels=LABELS, **arguments):
    arguments = {"num_classes": len(COUNTS), "seed": 0, **SAMPLERS[name], **arguments}
    return make_sampler(name, labels, **arguments)


def merged(name, world_size, **arguments):
    shares = [list(make(name, rank=rank, world_size=world_size, **arguments)) for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1
    if name == "dual":  # pairs of the two streams are split over the processes
        shares = [list(zip(share[::2], share[1::2], strict=True)) for share in shares]
        return [index for row in zip(*shares, strict=True) for pair in row for index in pair]
    return [index for row in zip(*shares, strict=True) for index in row]


def test_every_sampler_is_here():
    assert tuple(SAMPLERS) == NAMES


@pytest.mark.parametrize("name", SAMPLERS)
@given(world_size=st.integers(1, 9), seed=st.integers(0, 2**40), num_samples=st.integers(1, 50))
@settings(max_examples=20, deadline=None)
def test_ranks_share_the_one_process_stream(name, world_size, seed, num_samples):
    stream = list(make(name, seed=seed, num_samples=num_samples))
    together = merged(name, world_size, seed=seed, num_samples=num_samples)
    assert together[: len(stream)] == stream
    padding = together[len(stream) :]
    assert len(padding) < world_size * (2 if name == "dual" else 1)
    assert padding == (stream * world_size)[: len(padding)]  # padded from the beginning of the stream


@pytest.mark.parametrize("name", SAMPLERS)
def test_epochs_seeds_and_lengths(name):
    sampler = make(name)
    first = list(sampler)
    assert list(sampler) == first
    assert len(first) == len(sampler) == len(LABELS) * (2 if name == "dual" else 1)
    sampler.set_epoch(1)
    second = list(sampler)
    assert second != first
    sampler.set_epoch(0)
    assert list(sampler) == first
    assert list(make(name, seed=1)) not in (first, second)
    assert len(list(make(name, num_samples=10))) == len(make(name, num_samples=10)) == (20 if name == "dual" else 10)


@pytest.mark.parametrize("name", SAMPLERS)
def test_global_random_state_is_neither_used_nor_changed(name):
    torch.manual_seed(0)
    first = list(make(name))
    drawn = torch.rand(())
    torch.manual_seed(0)
    assert drawn == torch.rand(())
    assert list(make(name)) == first


def test_instance_sampler_is_a_permutation():
    assert sorted(InstanceSampler(50, seed=0)) == list(range(50))
    longer = list(InstanceSampler(50, seed=0, num_samples=120))
    assert sorted(longer[:50]) == sorted(longer[50:100]) == list(range(50))
    assert longer[:50] != longer[50:100]
    assert len(set(longer[100:])) == 20


n = torch.tensor(COUNTS, dtype=torch.float64)
PROBABILITIES = {  # computed by hand from the papers
    "class_balanced": (n > 0) / n.new_tensor(6),
    "square_root": n**0.5 / (n**0.5).sum(),
    "group_preferred": n.new_tensor(
        [0.2 * 300 / 465, 0.2 * 150 / 465, 0, 0.8 * 60 / 90, 0.8 * 30 / 90, 0.2 * 12 / 465, 0.2 * 3 / 465]
    ),
}


@pytest.mark.parametrize("name", PROBABILITIES)
def test_frequencies(name):
    draws = torch.tensor(list(make(name, num_samples=40_000)))
    classes = torch.bincount(LABELS[draws], minlength=len(COUNTS)).numpy()
    expected = PROBABILITIES[name].numpy() * 40_000
    assert classes[2] == 0
    present = expected > 0
    assert chisquare(classes[present], expected[present]).pvalue > 1e-3
    for label in (1, 4, 6):  # uniform within a class
        members = (label == LABELS).nonzero().flatten()
        images = torch.bincount(draws, minlength=len(LABELS))[members]
        assert chisquare(images.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("beta", [0.9, 0.999, 0.9999])
def test_effective_number(beta):
    counts = [400, 40, 4, 0]
    weights = [c * (1 - beta) / (1 - beta**c) if c else 0 for c in counts]
    probabilities = effective_number_probabilities(counts, beta)
    torch.testing.assert_close(probabilities, torch.tensor(weights, dtype=torch.float64) / sum(weights))
    labels = torch.arange(4).repeat_interleave(torch.tensor(counts))
    sampler = make_sampler("effective_number", labels, num_classes=4, seed=0, num_samples=30_000, beta=beta)
    drawn = torch.bincount(labels[list(sampler)], minlength=4)[:3]
    assert chisquare(drawn.numpy(), probabilities[:3].numpy() * 30_000).pvalue > 1e-3


def test_effective_number_between_its_limits():
    counts = [1000, 10]
    torch.testing.assert_close(effective_number_probabilities(counts, 0.0), n.new_tensor(counts) / 1010)
    torch.testing.assert_close(
        effective_number_probabilities(counts, 1 - 1e-9), n.new_tensor([0.5, 0.5]), atol=1e-5, rtol=0
    )


def test_group_preferred_stages():
    assert sorted(make("group_preferred", stage=1)) == list(range(len(LABELS)))
    torch.testing.assert_close(group_preferred_probabilities(COUNTS, 1), n / n.sum())
    torch.testing.assert_close(group_preferred_probabilities(COUNTS, 2), PROBABILITIES["group_preferred"])
    chosen = group_preferred_probabilities(COUNTS, 2, rho=0.6, preferred=[0, 5])
    assert float(chosen[[0, 5]].sum()) == pytest.approx(0.6)
    torch.testing.assert_close(chosen[[0, 5]] / 0.6, n[[0, 5]] / n[[0, 5]].sum())
    medium = group_preferred_probabilities(COUNTS, 2, rho=0.7)[[3, 4]]
    torch.testing.assert_close(medium, n.new_tensor([0.7 * 2 / 3, 0.7 / 3]))
    reversed_tail = torch.where(n > 0, 1 / n, 0)
    torch.testing.assert_close(group_preferred_probabilities(COUNTS, 3), reversed_tail / reversed_tail.sum())
    draws = LABELS[list(make("group_preferred", stage=3, num_samples=40_000))]
    present = n > 0
    expected = (reversed_tail / reversed_tail.sum() * 40_000)[present]
    drawn = torch.bincount(draws, minlength=7)[present]
    assert chisquare(drawn.numpy(), expected.numpy()).pvalue > 1e-3


def test_dual_streams_are_balanced_and_instance():
    stream = list(make("dual"))
    balanced, instance = stream[0::2], stream[1::2]
    assert sorted(instance) == list(range(len(LABELS)))
    other = list(make("dual", seed=1))
    assert other[0::2] != balanced
    assert other[1::2] != instance
    drawn = torch.bincount(LABELS[balanced], minlength=7)
    assert chisquare(drawn[[0, 1, 3, 4, 5, 6]].numpy()).pvalue > 1e-3


def test_more_categories_than_multinomial_takes():
    labels = torch.zeros(2**24 + 10, dtype=torch.int64)
    labels[-3:] = 1
    draws = list(make_sampler("class_balanced", labels, num_classes=2, seed=0, num_samples=1000))
    assert 400 < sum(index >= len(labels) - 3 for index in draws) < 600
    assert max(draws) == len(labels) - 1


def arguments(**changed):
    return {"labels": torch.tensor([0, 1, 1]), "num_classes": 2, "seed": 0, **changed}


@pytest.mark.parametrize(
    ("name", "changed", "error", "message"),
    [
        ("balanced", {}, ValueError, "name: expected one of instance, class_balanced, .*, got 'balanced'"),
        ("instance", {"seed": -1}, ValueError, "seed: expected at least 0, got -1"),
        ("instance", {"world_size": 0}, ValueError, "world_size: expected at least 1, got 0"),
        ("square_root", {"rank": 2, "world_size": 2}, ValueError, r"rank: expected a value in \[0, 2\), got 2"),
        ("dual", {"num_samples": 0}, ValueError, "num_samples: expected at least 1, got 0"),
        ("instance", {"labels": torch.tensor([0, 2])}, ValueError, r"labels: expected values in \[0, 2\), got 0 to 2"),
        ("class_balanced", {"labels": torch.tensor([-1, 1])}, ValueError, r"labels: .* got -1 to 1"),
        (
            "instance",
            {"labels": torch.zeros(2, 2).long()},
            ValueError,
            r"labels: expected shape \(N,\) .* got \(2, 2\)",
        ),
        ("instance", {"labels": torch.zeros(0).long()}, ValueError, r"labels: expected shape \(N,\) .* got \(0,\)"),
        ("instance", {"beta": 0.5}, TypeError, "beta"),
        ("group_preferred", {}, TypeError, "stage"),
        ("group_preferred", {"stage": 4}, ValueError, "stage: expected 1, 2 or 3, got 4"),
        ("group_preferred", {"stage": 2, "rho": 1.5}, ValueError, r"rho: expected a value in \[0, 1\], got 1.5"),
        ("group_preferred", {"stage": 2}, ValueError, "class_counts: stage 2 expects images of preferred and of other"),
        ("group_preferred", {"stage": 2, "preferred": [-1]}, ValueError, r"preferred: expected classes in \[0, 2\)"),
        ("effective_number", {"beta": 1.0}, ValueError, r"beta: expected a value in \[0, 1\), got 1.0"),
    ],
)
def test_bad_arguments(name, changed, error, message):
    with pytest.raises(error, match=message):
        make_sampler(name, **arguments(**changed))


def test_bad_probabilities_and_counts():
    labels = torch.tensor([0, 0, 2])
    with pytest.raises(ValueError, match=r"class_probabilities: expected 0 for the classes without images, \[1\]"):
        ClassSampler(labels, torch.ones(3), seed=0)
    for bad in (torch.zeros(3), torch.tensor([1.0, 0.0, float("nan")]), torch.tensor([1.0, 0.0, -1.0])):
        with pytest.raises(ValueError, match="class_probabilities: expected shape"):
            ClassSampler(labels, bad, seed=0)
    for function in (class_balanced_probabilities, square_root_probabilities, effective_number_probabilities):
        with pytest.raises(ValueError, match="class_counts: expected counts of at least 0, not all 0"):
            function([0, 0])
        with pytest.raises(ValueError, match="class_counts"):
            function([-1, 5])
    with pytest.raises(ValueError, match="epoch: expected at least 0, got -1"):
        InstanceSampler(3, seed=0).set_epoch(-1)
    with pytest.raises(ValueError, match="num_images: expected at least 1, got 0"):
        InstanceSampler(0, seed=0)
    with pytest.raises(ValueError, match="second: expected the first's num_samples, 3, got 4"):
        DualSampler(InstanceSampler(3, seed=0), InstanceSampler(4, seed=0))


def test_orders_and_views_share_no_seed(monkeypatch):
    """The two streams of a dual sampler share none either, in any epoch."""
    from ltfast.data import samplers, views

    used = []
    for module in (samplers, views):
        derive = module.derive_seed
        monkeypatch.setattr(module, "derive_seed", lambda *key, derive=derive: used.append(derive(*key)) or used[-1])
    dual = make("dual", seed=0)
    plain = [make("instance", seed=seed) for seed in (0, 1)]
    for epoch in range(3):
        for sampler in (dual, *plain):
            sampler.set_epoch(epoch)
            list(sampler)
    image = np.zeros((3, 4, 4), dtype=np.uint8)
    data = SeededViews(ArrayDataset(image, torch.arange(3), ["a", "b", "c"]), [np.asarray], seed=0)
    for draw in range(4):
        data[(draw, 0)]
    assert len(used) == 2 + 3 * 4 + 4
    assert len(set(used)) == len(used)


def test_class_counts_of_a_data_set():
    images = TensorDataset(torch.zeros(270))
    images.targets = [0] * 40 + [1] * 30 + [2] * 200
    for function in (square_root_probabilities, class_groups):
        ours, expected = function(images), function([40, 30, 200])
        assert torch.equal(ours, expected) if isinstance(ours, torch.Tensor) else ours == expected


def test_class_counts_as_a_mapping_or_an_array():
    counts = [40, 30, 200, 0]
    mapping = dict(reversed(list(enumerate(counts))))
    for form in (mapping, np.array(counts), torch.tensor(counts)):
        for function in (
            class_balanced_probabilities,
            square_root_probabilities,
            effective_number_probabilities,
            lambda counts: group_preferred_probabilities(counts, 2),
        ):
            assert torch.equal(function(form), function(counts))
        assert class_groups(form) == {"many": [2], "medium": [0, 1], "few": [3]}
    for function in (square_root_probabilities, class_groups):
        with pytest.raises(ValueError, match=r"class_counts has 2 labels.*no count of label 1"):
            function({0: 5, 2: 3})
        with pytest.raises(TypeError, match="class_counts is of type str"):
            function("531")
