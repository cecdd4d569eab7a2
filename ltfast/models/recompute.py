"""Activations that a backward pass computes again instead of keeping them."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def recomputed(function: Callable[[Tensor], Tensor], x: Tensor, *, random: bool = False) -> Tensor:
    """`function(x)`, of which autograd keeps only `x`.

    The backward pass runs `function` again, up to the last tensor that it needs: a final linear layer without trained
    weights does not run again.

    Args:
        function: its intermediate results are not kept.
        x: any shape.
        random: whether `function` draws random numbers, which have to be the same again.
    """
    if not torch.is_grad_enabled():
        return function(x)
    return checkpoint(function, x, use_reentrant=False, preserve_rng_state=random)
