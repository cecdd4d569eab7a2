import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ltfast.models.aggregation import aggregation_weights, agreement


def predictions(batch, models, classes, dtype=torch.float64):
    return torch.randn(batch, models, classes, dtype=dtype).mul(2).softmax(-1)


def by_autograd(first, second, steps, lr):
    """Learns the weights from the full predictions, by the definition."""
    learned = torch.zeros(first.shape[:2], dtype=first.dtype, requires_grad=True)
    for _ in range(steps):
        weights = learned.softmax(-1)[..., None]
        objective = ((weights * first).sum(1) * (weights * second).sum(1)).sum()
        (gradient,) = torch.autograd.grad(objective, learned)
        learned.data += lr * gradient
    return learned.softmax(-1).detach(), float(objective.detach())


@pytest.mark.parametrize(("batch", "models", "classes"), [(1, 1, 1), (7, 3, 10), (5, 2, 101), (3, 5, 2)])
@pytest.mark.parametrize(("steps", "lr"), [(50, 1.0), (7, 3.0)])
def test_equal_to_optimising_on_the_full_predictions(batch, models, classes, steps, lr):
    first, second = predictions(batch, models, classes), predictions(batch, models, classes)
    expected, _ = by_autograd(first, second, steps, lr)
    weights = aggregation_weights(agreement(first, second), steps=steps, lr=lr)
    torch.testing.assert_close(weights, expected, rtol=1e-10, atol=1e-12)


def test_the_objective_is_the_same_quadratic_form():
    first, second, weights = predictions(4, 3, 11), predictions(4, 3, 11), torch.rand(4, 3, dtype=torch.float64)
    mixed = [(weights[..., None] * view).sum(1) for view in (first, second)]
    form = torch.einsum("bs,bst,bt->b", weights, agreement(first, second), weights)
    torch.testing.assert_close(form, (mixed[0] * mixed[1]).sum(1))


@settings(deadline=None, max_examples=30)
@given(batch=st.integers(0, 9), models=st.integers(1, 5), seed=st.integers(0, 2**31))
def test_weights_are_shares_and_do_not_lower_the_agreement(batch, models, seed):
    torch.manual_seed(seed)
    matrices = agreement(predictions(batch, models, 6), predictions(batch, models, 6))
    weights = aggregation_weights(matrices, steps=50, lr=0.5)
    assert weights.shape == (batch, models)
    assert (weights > 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(batch, dtype=torch.float64))
    equal = torch.full_like(weights, 1 / models)
    before, after = (torch.einsum("bs,bst,bt->b", w, matrices, w) for w in (equal, weights))
    assert (after >= before - 1e-12).all()


def test_one_matrix_of_many_images_and_half_precision():
    first, second = predictions(8, 3, 20), predictions(8, 3, 20)
    matrices = agreement(first, second)
    assert aggregation_weights(matrices.mean(0)).shape == (3,)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(agreement(first.float(), second.float()).double(), matrices, rtol=1e-5, atol=1e-7)
    half = agreement(first.bfloat16(), second.bfloat16())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), matrices, rtol=2e-2, atol=1e-3)


def test_bad_arguments_are_named():
    first = predictions(2, 3, 4)
    with pytest.raises(ValueError, match=r"second \(2, 4, 3\): expected \(batch, models, classes\)"):
        agreement(first, first.mT)
    with pytest.raises(ValueError, match=r"agreement has shape \(2, 3\)"):
        aggregation_weights(torch.ones(2, 3))
    with pytest.raises(ValueError, match="steps is -1"):
        aggregation_weights(torch.ones(3, 3), steps=-1)
    with pytest.raises(ValueError, match="lr is 0"):
        aggregation_weights(torch.ones(3, 3), lr=0)
