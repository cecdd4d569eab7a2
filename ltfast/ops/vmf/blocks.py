"""The cross-entropy a block of classes at a time: a matrix product, an epilogue, a matrix product."""

from collections.abc import Callable

import torch
from torch import Tensor

from ltfast.ops.core.tensors import accumulator

LARGEST = {torch.float32: 4096, torch.float64: 512}  # classes of a block: a GPU's epilogue holds a row in registers
_BUDGET = 2**22  # values of a block's products, where that is not too few classes


def block_size(rows: int, classes: int, dtype: torch.dtype) -> int:
    """Classes of a block, a multiple of 16: the memory beside the arguments stays O(rows)."""
    size = min(LARGEST[dtype], max(_BUDGET // rows, 256), classes)
    return (size + 15) // 16 * 16


def cross_entropy(
    epilogue: Callable[..., int],
    features: Tensor,
    target: Tensor | None,
    directions: Tensor,
    kappa: Tensor,
    log_prior: Tensor | None,
    temperature: float,
    ignore_index: int,
    reduction: str,
    with_gradient: bool,
    unit: float,
) -> tuple[Tensor, Tensor]:
    """The op ``ltfast::vmf_cross_entropy`` with a backend's epilogue; without targets ``ltfast::vmf_log_sum_exp``.

    ``epilogue(products, start, count, features, target, directions, kappa, log_prior, state, loss, gradient,
    temperature, unit, ignore_index, mean, mean_gradient)`` turns the products of the features with the directions
    [start, start + count) into the directions' weights in the gradient, and keeps a running softmax in ``state``. It
    returns what the sum of the losses it wrote is to be divided by for the mean; if ``mean_gradient``, the gradient is
    the mean's.
    """
    dtype = accumulator(features.dtype)
    z, mu = features.to(dtype).contiguous(), directions.to(dtype).contiguous()
    rows, classes = len(z), len(mu)
    block = block_size(rows, classes, dtype)
    products = z.new_empty(rows, block)
    state = torch.empty(rows, 5, dtype=torch.float64 if z.device.type == "cpu" else dtype, device=z.device)
    loss = z.new_empty(rows)
    gradient = torch.empty_like(z) if with_gradient else None
    mean = reduction == "mean"
    means = (mean, mean and features.dtype != torch.float16)
    divisor = 1
    for start in range(0, classes, block):
        part = mu[start : start + block]
        here = products[:, : len(part)]
        torch.mm(z, part.T, out=here)
        divisor = epilogue(
            products, start, len(part), z, target, mu, kappa, log_prior, state, loss, gradient, temperature, unit,
            ignore_index, *means,
        )  # fmt: skip
        if gradient is not None:
            gradient.addmm_(here, part)
    if reduction != "none":
        loss = loss.sum()
        if mean and divisor != 1:
            loss = loss / divisor
    return loss, z.new_empty(0) if gradient is None else gradient.to(features.dtype)
