"""The cross-entropy, one block of classes at a time: a matrix product, an epilogue, a matrix product."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ltfast.ops.core.tensors import accumulator
from ltfast.ops.vmf.settings import VmfSettings

LARGEST = {torch.float32: 4096, torch.float64: 512}  # classes of a block: a GPU's epilogue holds a row in registers
_BUDGET = 2**22  # values of a block's products, where that is not too few classes


def block_size(rows: int, classes: int, dtype: torch.dtype) -> int:
    """Classes of a block, a multiple of 16: the memory beside the arguments stays O(rows)."""
    size = min(LARGEST[dtype], max(_BUDGET // rows, 256), classes)
    return (size + 15) // 16 * 16


@dataclass(frozen=True, slots=True)
class Rows:
    """What the blocks of a cross-entropy share; all tensors but the labels are of the dtype of the arithmetic.

    Attributes:
        features: (B, D), contiguous.
        target: (B,), int64, or None for the log-sum-exp alone.
        directions: (C, D), contiguous.
        kappa, log_prior: (C,); log_prior may be None.
        settings: of the op.
        state: (B, 5), the running softmax: its peak, its sum, the sum of the pulls, the label's logit and slope.
        loss: (B,), written with the last block.
        gradient: (B, D), or None if nobody wants it.
        unit: multiplies the gradient.
        mean: whether the loss is a mean.
        mean_gradient: whether the gradient becomes that of the mean here.
    """

    features: Tensor
    target: Tensor | None
    directions: Tensor
    kappa: Tensor
    log_prior: Tensor | None
    settings: VmfSettings
    state: Tensor
    loss: Tensor
    gradient: Tensor | None
    unit: float
    mean: bool
    mean_gradient: bool


def cross_entropy(
    epilogue: Callable[[Tensor, int, int, Rows], int],
    features: Tensor,
    target: Tensor | None,
    directions: Tensor,
    kappa: Tensor,
    log_prior: Tensor | None,
    settings: VmfSettings,
    with_gradient: bool,
    unit: float,
) -> tuple[Tensor, Tensor]:
    """The op ``ltfast::vmf_cross_entropy`` with the epilogue of a backend.

    ``epilogue(products, start, count, rows)`` turns the products of the features with the directions
    [start, start + count) into the weights of these directions in the gradient, and keeps a running softmax in
    ``rows.state``. It returns the number by which the sum of the losses it wrote is to be divided for the mean.
    """
    dtype = accumulator(features.dtype)
    z, mu = features.to(dtype).contiguous(), directions.to(dtype).contiguous()
    batch, classes = len(z), len(mu)
    block = block_size(batch, classes, dtype)
    products = z.new_empty(batch, block)
    state = torch.empty(batch, 5, dtype=torch.float64 if z.device.type == "cpu" else dtype, device=z.device)
    loss = z.new_empty(batch)
    gradient = torch.empty_like(z) if with_gradient else None
    mean = settings.reduction == "mean"
    mean_gradient = mean and features.dtype != torch.float16
    rows = Rows(z, target, mu, kappa, log_prior, settings, state, loss, gradient, unit, mean, mean_gradient)
    divisor = 1
    for start in range(0, classes, block):
        part = mu[start : start + block]
        here = products[:, : len(part)]
        torch.mm(z, part.T, out=here)
        divisor = epilogue(products, start, len(part), rows)
        if gradient is not None:
            gradient.addmm_(here, part)
    if settings.reduction != "none":
        loss = loss.sum()
        if mean and divisor != 1:
            loss = loss / divisor
    return loss, z.new_empty(0) if gradient is None else gradient.to(features.dtype)
