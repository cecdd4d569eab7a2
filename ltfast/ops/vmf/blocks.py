"""The cross-entropy, one block of classes at a time: a matrix product, an epilogue, a matrix product."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ltfast.ops.bessel.debye import ORDER_SINGLE
from ltfast.ops.core.tensors import accumulator
from ltfast.ops.vmf.settings import VmfSettings

LARGEST = {torch.float32: 4096, torch.float64: 512}  # classes of a block: a GPU's epilogue holds a row in registers
# Values of a block's products, where that is not too few classes. On a GPU, 2048 rows have blocks of 4096 classes then.
_BUDGET = {"cpu": 2**22, "cuda": 2**23}


def block_size(rows: int, classes: int, width: int, dtype: torch.dtype, device: str) -> int:
    """Classes of a block, a multiple of 16: the memory beside the arguments stays O(rows). ``device`` is a type."""
    largest = LARGEST[dtype]
    if device == "cuda" and width / 2 - 1 < ORDER_SINGLE:  # the recurrence takes more registers
        largest = min(largest, 2048)
    size = min(largest, max(_BUDGET[device] // rows, 256), classes)
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
        losses: (B,), written with the last block.
        gradient: (B, D), or None if nobody wants it.
        unit: multiplies the gradient.
        mean_gradient: whether the gradient becomes that of the mean here.
    """

    features: Tensor
    target: Tensor | None
    directions: Tensor
    kappa: Tensor
    log_prior: Tensor | None
    settings: VmfSettings
    state: Tensor
    losses: Tensor
    gradient: Tensor | None
    unit: float
    mean_gradient: bool


def cross_entropy(
    epilogue: Callable[[Tensor, int, int, Rows], Tensor],
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
    ``rows.state``. With the last block it returns the reduced loss.
    """
    dtype = accumulator(features.dtype)
    z, mu = features.to(dtype).contiguous(), directions.to(dtype).contiguous()
    batch, width, classes = *z.shape, len(mu)
    block = block_size(batch, classes, width, dtype, z.device.type)
    products = z.new_empty(batch, block)
    state = torch.empty(batch, 5, dtype=torch.float64 if z.device.type == "cpu" else dtype, device=z.device)
    gradient = torch.empty_like(z) if with_gradient else None
    mean_gradient = settings.reduction == "mean" and features.dtype != torch.float16
    rows = Rows(z, target, mu, kappa, log_prior, settings, state, z.new_empty(batch), gradient, unit, mean_gradient)
    loss = rows.losses
    for start in range(0, classes, block):
        part = mu[start : start + block]
        here = products[:, : len(part)]
        torch.mm(z, part.T, out=here)
        loss = epilogue(products, start, len(part), rows)
        if gradient is not None:
            gradient.addmm_(here, part)
    return loss, z.new_empty(0) if gradient is None else gradient.to(features.dtype)
