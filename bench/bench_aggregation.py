"""Test-time weights of sub-models for 10,000 images: by the T x T form, and by autograd on the full predictions."""

import pytest
import torch

from ltfast.models.aggregation import aggregation_weights, agreement

IMAGES, MODELS, CLASSES, STEPS = 10_000, 3, 1000, 50


def by_autograd(first, second):
    learned = torch.zeros(first.shape[:2], device=first.device, requires_grad=True)
    for _ in range(STEPS):
        weights = learned.softmax(-1)[..., None]
        objective = ((weights * first).sum(1) * (weights * second).sum(1)).sum()
        (gradient,) = torch.autograd.grad(objective, learned)
        learned.data += gradient
    return learned.softmax(-1).detach()


@pytest.mark.parametrize("implementation", ["ltfast", "autograd"])
def test_aggregation(step, device, implementation):
    first, second = (torch.randn(IMAGES, MODELS, CLASSES, device=device).mul(3).softmax(-1) for _ in range(2))

    def ours():
        return aggregation_weights(agreement(first, second), steps=STEPS)

    def objective(weights):
        return ((weights[..., None] * first).sum(1) * (weights[..., None] * second).sum(1)).sum()

    if implementation == "autograd":
        torch.testing.assert_close(objective(ours()), objective(by_autograd(first, second)), rtol=1e-5, atol=0)
    calls = {"ltfast": ours, "autograd": lambda: by_autograd(first, second)}
    name = f"test-time weights {IMAGES} x {MODELS} x {CLASSES}, {STEPS} steps"
    step(calls[implementation], group=name, implementation=implementation, moved=8 * IMAGES * MODELS * CLASSES)
