"""Matrices of more than 2^31 elements, whose offsets do not fit into 32 bits: each row counts."""

import pytest
import torch

from ltfast.ops import agcl, balanced_bce

ROWS, CLASSES = 2**15 + 3, 2**16 + 1  # 2^31 elements and more; 4 GiB in bfloat16, and as much for the gradient


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["agcl", "balanced_bce"])
def test_more_than_two_to_the_31_elements(name):
    """The first rows and the last ones have the losses and gradients that they have alone."""
    need = 5 * 2 * ROWS * CLASSES
    if torch.cuda.mem_get_info()[0] < need:
        pytest.skip(f"needs {need / 2**30:.0f} GiB of free memory on the GPU")
    logits = torch.empty(ROWS, CLASSES, dtype=torch.bfloat16, device="cuda").uniform_(-1, 1).requires_grad_()
    labels = torch.randint(CLASSES, (ROWS,), device="cuda")
    bias = torch.randn(CLASSES, device="cuda")

    def losses(x, y):
        if name == "agcl":
            return agcl(x, y, reduction="none")
        return balanced_bce(x, y, bias, reduction="none")

    found = losses(logits, labels)
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    for rows in (slice(0, 5), slice(2**15 - 5, ROWS)):
        alone = logits[rows].detach().clone().requires_grad_()
        expected = losses(alone, labels[rows])
        torch.testing.assert_close(found[rows], expected)
        torch.testing.assert_close(gradient[rows], torch.autograd.grad(expected.sum(), alone)[0])
