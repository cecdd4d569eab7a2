"""Offsets of elements that do not fit into 32 bits."""

import pytest
import torch

from ltfast.ops import agcl, balanced_bce, cross_entropy

ROWS, CLASSES = 2**15 + 3, 2**16 + 1  # 2^31 elements and more; 4 GiB in bfloat16, and as much for the gradient
LOSSES = {  # of logits, labels and a vector of the classes
    "agcl": lambda x, y, vector: agcl(x, y, reduction="none"),
    "balanced_bce": lambda x, y, vector: balanced_bce(x, y, vector, reduction="none"),
    "cross_entropy": lambda x, y, vector: cross_entropy(x, y, vector, reduction="none"),
}


@pytest.mark.gpu
@pytest.mark.parametrize("name", LOSSES)
def test_more_than_two_to_the_31_elements(name):
    """The first rows and the last ones have the losses and gradients that they have alone."""
    need = 5 * 2 * ROWS * CLASSES
    if torch.cuda.mem_get_info()[0] < need:
        pytest.skip(f"needs {need / 2**30:.0f} GiB of free memory on the GPU")
    logits = torch.empty(ROWS, CLASSES, dtype=torch.bfloat16, device="cuda").uniform_(-1, 1).requires_grad_()
    labels = torch.randint(CLASSES, (ROWS,), device="cuda")
    bias = torch.randn(CLASSES, device="cuda")
    found = LOSSES[name](logits, labels, bias)
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    for rows in (slice(0, 5), slice(2**15 - 5, ROWS)):
        alone = logits[rows].detach().clone().requires_grad_()
        expected = LOSSES[name](alone, labels[rows], bias)
        torch.testing.assert_close(found[rows], expected)
        torch.testing.assert_close(gradient[rows], torch.autograd.grad(expected.sum(), alone)[0])


@pytest.mark.parametrize("name", LOSSES)
def test_rows_that_are_more_than_two_to_the_31_elements_apart(place, name):
    stride = 2**31 + 8
    values = torch.rand(2, 16, device=place.device).bfloat16()
    # the memory between the rows is not touched
    logits = torch.empty(stride + 16, dtype=torch.bfloat16, device=place.device).as_strided((2, 16), (stride, 1))
    logits.copy_(values)
    labels, bias = torch.tensor([1, 2], device=place.device), torch.zeros(16, device=place.device)
    found, expected = (LOSSES[name](x, labels, bias) for x in (logits, values))
    torch.testing.assert_close(found, expected)
