"""The importance of each parameter of a network for some images."""

from collections.abc import Callable, Iterable, Sequence
from itertools import islice

import torch
from accelerate.utils import reduce, send_to_device
from torch import Tensor, nn
from torch.nn import functional as F

from ltfast.ops import taylor_importance_
from ltfast.ops.core.tensors import accumulator


def parameter_importance(
    output: Callable[[Tensor], Tensor],
    parameters: Sequence[nn.Parameter],
    batches: Iterable[Sequence[Tensor]],
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    *,
    accumulate: int = 1,
) -> list[Tensor]:
    r"""The mean over batches of :math:`(w \, \partial L / \partial w)^2`: to first order, the squared change of a
    batch's loss when the parameter is set to zero.

    Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019, equation 8. The mode of the network
    does not change; in evaluation mode BatchNorm's statistics do not change either.

    Args:
        output: images (B, channels, H, W) -> the first argument of `loss`, for example class scores (B, C).
        parameters: the parameters, all on one device. One that the loss does not depend on has importance zero.
        batches: `(images, labels)`. Under several processes each passes its shares, which may have any sizes, and a
            batch is the joined shares of all processes.
        loss: the output for a batch and its labels -> the mean loss of the batch.
        accumulate: this many consecutive batches count as one, as in an optimiser step.

    Returns:
        A tensor for each parameter, with its shape, float32 or float64.

    Raises:
        ValueError: there are no batches.
    """
    sums = [torch.zeros_like(p, dtype=accumulator(p.dtype), requires_grad=False) for p in parameters]
    asked = [p.requires_grad for p in parameters]
    device = parameters[0].device
    shares, number = iter(batches), 0
    try:
        for p in parameters:
            p.requires_grad_(True)
        while True:
            window = list(islice(shares, accumulate))
            own = sum(len(batch[1]) for batch in window)
            rows = int(reduce(torch.tensor(own, device=device), "sum"))
            if rows == 0:
                break
            gradients: list[Tensor] = []
            for batch in window:
                images, labels = send_to_device(batch, device, non_blocking=True)
                with torch.enable_grad():
                    value = loss(output(images), labels) * (len(labels) / rows)
                more = list(torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True))
                gradients = [a + b for a, b in zip(gradients, more, strict=True)] if gradients else more
            gradients = gradients or [torch.zeros_like(p) for p in parameters]
            if own < rows:  # other processes have the rest
                joined = reduce(torch.cat([gradient.flatten() for gradient in gradients]), "sum")
                parts = joined.split([p.numel() for p in parameters])
                gradients = [part.view_as(p) for part, p in zip(parts, parameters, strict=True)]
            taylor_importance_(sums, parameters, gradients)
            number += 1
    finally:
        for p, required in zip(parameters, asked, strict=True):
            p.requires_grad_(required)
    if number == 0:
        raise ValueError("batches: expected images to measure the importance on, got none")
    return [total / number for total in sums]
