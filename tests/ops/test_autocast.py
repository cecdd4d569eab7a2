"""Forward and backward pass inside ``torch.autocast``: kernels choose the dtypes of their products themselves."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import ltfast
from ltfast.ops.core.cases import Sizes
from ops.conftest import PLACES, Place
from ops.every_op import EXAMPLES, exact_gradient, function_and_tensor

EVERY_PLACE = [pytest.param(Place("reference", "cpu"), id="reference"), *(p for p in PLACES if p.id != "triton-gpu")]


@dataclass(frozen=True)
class RepresentableSizes(Sizes):
    """Numbers that ``autocast`` represents exactly. Without this, a temperature of 0.07 would amplify the rounding of
    the arguments, and the tolerance would have to allow for it."""

    autocast: torch.dtype = torch.bfloat16

    def rand(self, *shape: int) -> Tensor:
        return super().rand(*shape).to(self.autocast).to(self.dtype)

    def randn(self, *shape: int) -> Tensor:
        return super().randn(*shape).to(self.autocast).to(self.dtype)


def tolerance(name: str, backend: str, dtype: torch.dtype) -> float:
    """Relative to the largest value. What is PyTorch's own product, in either direction, takes autocast's dtype; so do
    the queries of ``queue_softmax``, and classifiers inside a loss."""
    plain = backend == "reference" and name == "patch_roi_pool"
    if name.endswith("linear_agcl"):
        return 20 * torch.finfo(dtype).eps  # the op multiplies the rounded cosines by its scale of 20
    if name.startswith("queue_softmax") or name == "vmf_logits" or plain or "linear" in name:
        return 4 * torch.finfo(dtype).eps
    return 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("place", EVERY_PLACE)
def test_both_passes_inside_autocast(place, name, dtype):
    function, x = function_and_tensor(name, RepresentableSizes(autocast=dtype))
    expected = exact_gradient(function, x)
    exact = function(x)
    x = x.float().requires_grad_()
    with ltfast.backend(place.backend), torch.autocast("cpu", dtype):
        value = function(x)
        (gradient,) = torch.autograd.grad(value, x)
    limit = tolerance(name, place.backend, dtype)
    assert gradient.dtype == torch.float32
    assert value.dtype in (torch.float32, torch.float64)
    assert (value - exact).abs() <= max(limit, 1e-5) * exact.abs().clamp(min=1)
    assert (gradient - expected).abs().max() <= limit * expected.abs().max().clamp(min=1)


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_second_derivatives_inside_autocast(backend):
    function, x = function_and_tensor("queue_softmax, keys")

    def penalty(x):
        (gradient,) = torch.autograd.grad(function(x), x, create_graph=True)
        return gradient.square().sum()

    expected = penalty(x.clone().requires_grad_())
    with ltfast.backend(backend), torch.autocast("cpu", torch.bfloat16):
        found = penalty(x.float().requires_grad_())
    torch.testing.assert_close(found.double(), expected, rtol=4e-2, atol=1e-3)
