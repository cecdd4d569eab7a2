"""Random logits, and a loss of them held against its definition in float64."""

import torch

from ops.compare import loss_and_gradient, relative_error, row_error, tolerances

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def problem(rows, classes, dtype=torch.float32, device="cpu"):
    """Logits, labels and a bias."""
    logits = (torch.randn(rows, classes, dtype=torch.float64) * 4).to(dtype).to(device)
    return logits, torch.randint(classes, (rows,), device=device), torch.randn(classes, device=device) * 3


def compare(fused, exact, logits, incoming=None):
    """Loss and gradient of ``fused(logits)`` are those of ``exact(logits)`` for float64 logits."""
    loss, gradient = loss_and_gradient(fused, logits, incoming)
    expected, expected_gradient = loss_and_gradient(exact, logits.double(), incoming)
    loss_tolerance, gradient_tolerance = tolerances(logits.dtype)
    assert loss.dtype == (torch.float64 if logits.dtype == torch.float64 else torch.float32)
    assert gradient.dtype == logits.dtype
    assert relative_error(loss, expected) < loss_tolerance
    assert row_error(gradient, expected_gradient) < gradient_tolerance
