import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from ltfast.models import SubModels
from ltfast.models.sub_models import lowest


def network():
    layers = [nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.BatchNorm2d(4), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 3))


def trained(model, steps=3, lr=0.1):
    """Runs steps of an optimiser that also changes weights without a gradient, through momentum and weight decay."""
    optimizer = torch.optim.SGD(model.network.parameters(), lr=lr, momentum=0.9, weight_decay=0.1)
    model.train()
    for _ in range(steps):
        F.cross_entropy(model(torch.randn(6, 1, 8, 8)), torch.randint(3, (6,))).backward()
        model.still_gradients_()
        held = [owner != model.stage for owner in model.owners()]
        assert all((w.grad[mask] == 0).all() for w, mask in zip(model.weights.values(), held, strict=True))
        optimizer.step()
        model.still_weights_()
        optimizer.zero_grad()
    model.eval()


def three_stages():
    """A SubModels with three trained stages, and copies of it after each stage."""
    model, left = SubModels(network(), 3), []
    for stage in (1, 2, 3):
        if stage > 1:
            model.begin(stage, network())
        trained(model)
        if stage < 3:
            importance = [torch.rand_like(w) for w in model.weights.values()]
            for share in (0.3, 0.6):
                model.prune(importance, share)
                trained(model)
        left.append(copy.deepcopy(model))
    return model, left


def test_what_a_stage_keeps_stays_bit_for_bit():
    model, left = three_stages()
    for stage, before in enumerate(left[:-1], 1):
        kept = 0
        for owner, old_owner, new, old in zip(
            model.owners(), before.owners(), model.weights.values(), before.weights.values(), strict=True
        ):
            mask = old_owner <= stage
            assert torch.equal(mask, owner <= stage)
            assert torch.equal(new[mask], old[mask])
            assert (old[~mask] == 0).all()
            assert (new[~mask] != 0).float().mean() > 0.5
            kept += int(mask.sum())
        total = sum(w.numel() for w in model.weights.values())
        assert kept == total - round(0.6 * total) if stage == 1 else kept < total


def test_sub_models_answer_as_their_stage_left_them():
    model, left = three_stages()
    images = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        scores = model.scores(images)
        assert scores.shape == (5, 3, 3)
        for stage, before in enumerate(left, 1):
            torch.testing.assert_close(scores[:, stage - 1], before.network(images))
            torch.testing.assert_close(model(images, stage), before.network(images))
    assert not torch.allclose(scores[:, 0], scores[:, 1])


def test_a_sub_model_is_the_network_with_later_weights_zeroed():
    model, left = three_stages()
    tensors = model.tensors(1)
    for (name, weight), owner in zip(model.weights.items(), model.owners(), strict=True):
        zeroed = weight.detach().clone()
        zeroed[owner > 1] = 0
        assert torch.equal(tensors[name], zeroed)
    # each stage has its own biases, normalisation and statistics
    own = {name: value for name, value in left[0].network.state_dict().items() if name not in model.weights}
    assert own
    assert all(torch.equal(tensors[name], value) for name, value in own.items())
    (gradient,) = torch.autograd.grad(model(torch.randn(2, 1, 8, 8), 1).sum(), model.network[0].weight)
    assert (gradient[model.owners()[0] > 1] == 0).all()


def test_a_state_dict_holds_everything():
    model, _ = three_stages()
    twin = SubModels(network(), 3)
    twin.load_state_dict(model.state_dict())
    images = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(twin.eval().scores(images), model.scores(images))
    assert twin.stage == 3


def test_what_is_held_still_is_what_was_loaded():
    model, _ = three_stages()
    other, _ = three_stages()
    model.load_state_dict(other.state_dict())
    trained(model)
    for new, old, owner in zip(model.weights.values(), other.weights.values(), other.owners(), strict=True):
        assert torch.equal(new[owner < 3], old[owner < 3])


def test_a_look_at_pruning_changes_nothing():
    model = SubModels(network(), 2)
    before = copy.deepcopy(model.state_dict())
    importance = [torch.rand_like(w) for w in model.weights.values()]
    with model.pruned(importance, 0.4):
        zeros = sum(int((w == 0).sum()) for w in model.weights.values())
        assert zeros == round(0.4 * sum(w.numel() for w in model.weights.values()))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0, 3e-39]), max_size=9), min_size=1, max_size=4), st.data())
def test_lowest_is_exact_with_ties(lists, data):
    values = [torch.tensor(row, dtype=torch.float32) for row in lists]
    masks = [torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(r), max_size=len(r))), dtype=torch.bool)
             for r in lists]  # fmt: skip
    fraction = data.draw(st.floats(0, 1))
    chosen = lowest(values, masks, fraction)
    number = sum(int(mask.sum()) for mask in masks)
    assert sum(int(mask.sum()) for mask in chosen) == round(fraction * number)
    assert all((mask | ~under).all() for mask, under in zip(masks, chosen, strict=True))
    inside = torch.cat([v[m & c] for v, m, c in zip(values, masks, chosen, strict=True)])
    outside = torch.cat([v[m & ~c] for v, m, c in zip(values, masks, chosen, strict=True)])
    assert not (len(inside) and len(outside)) or inside.max() <= outside.min()


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="network has no parameters with two or more dimensions"):
        SubModels(nn.BatchNorm1d(3), 2)
    with pytest.raises(ValueError, match="stages is 0"):
        SubModels(network(), 0)
    model = SubModels(network(), 2)
    with pytest.raises(ValueError, match="stage 2 has nothing to train"):
        model.begin(2, network())
    with pytest.raises(ValueError, match="stage is 3: expected 2, of 2"):
        model.begin(3, network())
    with pytest.raises(ValueError, match="stage is 2: expected 1 to 1"):
        model.tensors(2)
