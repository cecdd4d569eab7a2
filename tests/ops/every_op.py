"""Every op as a function of one tensor, for what all of them promise alike. Arithmetic is in float64."""

from collections.abc import Callable

import torch
from torch import Tensor

from ltfast.ops.catalog import OPS
from ltfast.ops.core.cases import Example, Sizes

SIZES = Sizes()
EXAMPLES: dict[str, Callable[[Sizes], Example]] = {name: make for op in OPS for name, make in op.examples.items()}
IN_PLACE = tuple(name for op in OPS for name in op.in_place)  # without gradients


def function_and_tensor(name: str, sizes: Sizes = SIZES) -> tuple[Callable[..., Tensor], Tensor]:
    """A function of x and labels, which may be left out, with a scalar result, and an x; new numbers at each call."""
    example = EXAMPLES[name](sizes)
    return lambda x, labels=example.labels: example.function(x, labels), example.x


def exact_gradient(function: Callable[..., Tensor], x: Tensor, *labels: Tensor) -> Tensor:
    """By the ordinary backward pass."""
    x = x.detach().clone().requires_grad_()
    return torch.autograd.grad(function(x, *labels), x)[0]
