import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from ltfast.data import NumberedBatches, SeededViews, make_sampler, train_transform


def three_random_numbers(image):
    """One number from each global generator."""
    return torch.tensor([random.random(), np.random.random(), torch.rand(()).item()], dtype=torch.float64)


@pytest.fixture
def views(colour_bundle):
    transforms = [train_transform(colour_bundle, "randaugment"), train_transform(colour_bundle, "simclr")]
    return SeededViews(colour_bundle.train, transforms, seed=7)


def batches_of(views, sampler="class_balanced", world_size=1, rank=0, **arguments):
    labels = views.dataset.labels
    sampler = make_sampler(sampler, labels, num_classes=2, seed=3, num_samples=21, rank=rank, world_size=world_size)
    return NumberedBatches(sampler, **{"batch_size": 4, **arguments})


def load(views, batches, workers=0):
    return list(DataLoader(views, batch_sampler=batches, num_workers=workers))


def same(first, second):
    return len(first) == len(second) and all(
        torch.equal(a, b) for one, other in zip(first, second, strict=True) for a, b in zip(one, other, strict=True)
    )


def test_views_do_not_depend_on_workers(views):
    batches = batches_of(views)
    batches.set_epoch(2)
    alone, shared = load(views, batches), load(views, batches, workers=2)
    assert [tuple(part.shape) for part in alone[0]] == [(4, 3, 32, 32), (4, 3, 32, 32), (4,)]
    assert alone[0][2].dtype == torch.int64
    assert same(alone, shared)


def test_views_do_not_depend_on_order_or_global_state(views):
    first = views[(5, 2)]
    views[(6, 3)]
    random.seed(99), np.random.seed(99), torch.manual_seed(99)
    again = views[(5, 2)]
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])


def test_each_draw_seed_and_generator_counts(colour_bundle):
    views = SeededViews(colour_bundle.train, [three_random_numbers], seed=0)
    other = SeededViews(colour_bundle.train, [three_random_numbers], seed=1)
    drawn = [views[(0, 4)][0], views[(1, 4)][0], views[(2**40, 4)][0], other[(0, 4)][0], other[(1, 4)][0]]
    assert (torch.stack(drawn).T.sort().values.diff() > 0).all()  # all five differ in each of the three generators
    assert views[(0, 4)][1] == 0


def test_views_of_one_draw_differ(colour_bundle):
    views = SeededViews(colour_bundle.train, [three_random_numbers, three_random_numbers], seed=0)
    one, two, _ = views[(0, 0)]
    assert (one != two).all()


def test_global_state_is_restored_even_after_an_error(colour_bundle):
    def fail(image):
        three_random_numbers(image)
        raise RuntimeError("broken transform")

    def state():
        random.seed(1), np.random.seed(1), torch.manual_seed(1)

    state()
    expected = three_random_numbers(None)
    for transform in (three_random_numbers, fail):
        state()
        views = SeededViews(colour_bundle.train, [transform], seed=0)
        try:
            views[(0, 0)]
        except RuntimeError as error:
            assert str(error) == "broken transform"  # noqa: PT017
        assert torch.equal(three_random_numbers(None), expected)


@pytest.mark.parametrize("skip", [0, 1, 3, 6])
def test_resuming_inside_an_epoch_is_exact_and_loads_nothing_before(views, skip):
    batches = batches_of(views)
    batches.set_epoch(4)
    whole = load(views, batches)
    assert len(whole) == len(batches) == 6

    loaded = []
    original = views.dataset.image
    views.dataset.image = lambda index: loaded.append(index) or original(index)
    batches = batches_of(views)
    batches.set_epoch(4, skip=skip)
    assert same(load(views, batches), whole[skip:])
    assert len(loaded) == 21 - min(4 * skip, 21)

    batches.set_epoch(5)
    assert len(load(views, batches)) == 6


@pytest.mark.parametrize("sampler", ["instance", "class_balanced", "dual"])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_draws_are_unique_across_epochs_ranks_and_stages(views, sampler, world_size):
    draws = []
    start = 0
    for _stage in range(2):
        for rank in range(world_size):
            batches = batches_of(views, sampler, world_size, rank, start_draw=start)
            for epoch in range(3):
                batches.set_epoch(epoch)
                draws += [draw for batch in batches for draw, _ in batch]
        start += 3 * batches.draws_per_epoch
    assert sorted(draws) == list(range(start))  # unique and complete


@pytest.mark.parametrize("sampler", ["instance", "class_balanced", "dual"])
@pytest.mark.parametrize("world_size", [2, 3])
def test_draws_do_not_depend_on_the_number_of_processes(views, sampler, world_size):
    (alone,) = [dict(pair for batch in batches_of(views, sampler) for pair in batch)]
    together = {}
    for rank in range(world_size):
        together.update(pair for batch in batches_of(views, sampler, world_size, rank) for pair in batch)
    assert {draw: together[draw] for draw in alone} == alone


def test_batches_follow_the_sampler(views):
    batches = batches_of(views)
    batches.set_epoch(1)
    assert [index for batch in batches for _, index in batch] == list(batches.sampler)
    assert [len(batch) for batch in batches] == [4, 4, 4, 4, 4, 1]
    full = batches_of(views, drop_last=True)
    assert [len(batch) for batch in full] == [4] * 5
    assert len(full) == 5


def test_bad_arguments(colour_bundle, views):
    with pytest.raises(ValueError, match="transforms: expected at least one, got none"):
        SeededViews(colour_bundle.train, [], seed=0)
    with pytest.raises(ValueError, match="seed: expected at least 0, got -1"):
        SeededViews(colour_bundle.train, [three_random_numbers], seed=-1)
    with pytest.raises(TypeError, match=r"key: expected a pair \(draw, index\) from NumberedBatches, got 3"):
        views[3]
    with pytest.raises(ValueError, match="batch_size: expected at least 1, got 0"):
        batches_of(views, batch_size=0)
    with pytest.raises(ValueError, match="batch_size: expected an even number for a dual sampler, got 3"):
        batches_of(views, "dual", batch_size=3)
    with pytest.raises(ValueError, match="start_draw: expected at least 0, got -1"):
        batches_of(views, start_draw=-1)
    with pytest.raises(ValueError, match=r"skip: expected a number of batches in \[0, 6\], got 7"):
        batches_of(views).set_epoch(0, skip=7)
    with pytest.raises(ValueError, match="epoch: expected at least 0, got -1"):
        batches_of(views).set_epoch(-1)
