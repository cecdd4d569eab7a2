"""Comparing a fast path with the float64 reference."""

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

# Gradients are stored and scaled, so they are rounded twice; Triton's interpreter rounds bfloat16 towards zero, with an
# error of up to 2^-7. float32 is held to the project's goals.
LOSS_TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-6, torch.float16: 2e-6}
GRADIENT_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2 * 2**-7, torch.float16: 1.5e-3}


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """The largest error relative to max(1, |expected|)."""
    actual, expected = actual.double().cpu(), expected.double().cpu()
    return ((actual - expected).abs() / expected.abs().clamp(min=1)).max().item()


def row_error(actual: Tensor, expected: Tensor) -> float:
    """The largest error of a row, in the Euclidean norm, relative to the row's; rows whose gradient nearly vanishes
    by cancellation (sigmoid - target, p = 1) count as a tenth of the largest, or as 0.03 / B."""
    actual, expected = actual.double().cpu(), expected.double().cpu()
    norms = expected.norm(dim=1)
    scale = norms.clamp(min=max(0.1 * norms.max().item(), 0.03 / len(norms)))
    return ((actual - expected).norm(dim=1) / scale).max().item()


def tolerances(dtype: torch.dtype) -> tuple[float, float]:
    """The tolerances of the loss and of the gradient."""
    return LOSS_TOLERANCE[dtype], GRADIENT_TOLERANCE[dtype]


def loss_and_gradient(function, logits: Tensor, incoming: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``function(logits)`` and its gradient in the logits."""
    logits = logits.detach().requires_grad_()
    loss = function(logits)
    if incoming is None:
        incoming = torch.ones_like(loss)
    (gradient,) = torch.autograd.grad(loss, logits, incoming.to(loss))
    return loss.detach(), gradient


def opcheck(op: Any, arguments: tuple[Any, ...], **tolerances: float) -> None:
    """`torch.library.opcheck`, which takes no tolerances in PyTorch 2.6."""
    if "rtol" not in inspect.signature(torch.library.opcheck).parameters:
        pytest.skip("this PyTorch's opcheck compares bits")
    torch.library.opcheck(op, arguments, **tolerances)
