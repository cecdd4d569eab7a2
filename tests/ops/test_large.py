"""Offsets of elements that do not fit into 32 bits."""

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


@pytest.mark.parametrize("name", ["agcl", "balanced_bce"])
def test_rows_that_are_more_than_two_to_the_31_elements_apart(place, name):
    stride = 2**31 + 8
    values = torch.rand(2, 16, device=place.device).bfloat16()
    # the memory between the rows is not touched
    logits = torch.empty(stride + 16, dtype=torch.bfloat16, device=place.device).as_strided((2, 16), (stride, 1))
    logits.copy_(values)
    labels, bias = torch.tensor([1, 2], device=place.device), torch.zeros(16, device=place.device)
    found, expected = (
        agcl(x, labels, reduction="none") if name == "agcl" else balanced_bce(x, labels, bias, reduction="none")
        for x in (logits, values)
    )
    torch.testing.assert_close(found, expected)
