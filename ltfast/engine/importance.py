"""How much each parameter of a network matters to some images."""

from collections.abc import Callable, Iterable, Sequence

import torch
from accelerate.utils import reduce, send_to_device
from torch import Tensor, nn
from torch.nn import functional as F

from ltfast.ops import taylor_importance_
from ltfast.ops.fused_loss import accumulator


def parameter_importance(
    scores: Callable[[Tensor], Tensor],
    parameters: Sequence[nn.Parameter],
    batches: Iterable[Sequence[Tensor]],
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> list[Tensor]:
    r"""The mean over batches of :math:`(w \, \partial L / \partial w)^2`: to first order, the square of what a batch's
    loss changes by when the parameter is set to zero.

    Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019, equation 8. The network is used in
    the mode it is in (evaluation mode leaves BatchNorm's statistics alone); gradients that are there are lost.

    Args:
        scores: images (B, channels, H, W) -> class scores (B, C).
        parameters: whose importance is asked for, on one device; zero for those that the scores do not depend on.
        batches: this process's, `(images, labels)`; the mean is over those of all processes.
        loss: of scores and labels, a scalar.

    Returns:
        A tensor of each parameter's shape, float32 or float64.

    Raises:
        ValueError: there are no batches.
    """
    sums = [torch.zeros_like(p, dtype=accumulator(p.dtype), requires_grad=False) for p in parameters]
    asked = [p.requires_grad for p in parameters]
    device = parameters[0].device
    number = torch.zeros((), dtype=torch.int64, device=device)
    try:
        for p in parameters:
            p.requires_grad_(True)
        with torch.enable_grad():
            for batch in batches:
                images, labels = send_to_device(batch, device, non_blocking=True)
                gradients = torch.autograd.grad(loss(scores(images), labels), parameters, allow_unused=True)
                used = [i for i, gradient in enumerate(gradients) if gradient is not None]
                taylor_importance_([sums[i] for i in used], [parameters[i] for i in used], [gradients[i] for i in used])
                number += 1
    finally:
        for p, required in zip(parameters, asked, strict=True):
            p.requires_grad_(required)
    reduced = [reduce(tensor, "sum") for tensor in (number, *sums)]
    if int(reduced[0]) == 0:
        raise ValueError("batches: expected images to measure the importance on, got none")
    return [total / reduced[0] for total in reduced[1:]]
