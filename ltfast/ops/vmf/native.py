"""The CPU path: csrc/vmf.h between PyTorch's matrix products."""

from typing import Any

import torch
from torch import Tensor

from ltfast.ops.core import backends
from ltfast.ops.vmf import blocks


def vmf_ratio(increments: Tensor, kappa: Tensor, nu: float, with_slope: bool) -> tuple[Tensor, Tensor]:
    increments = increments.contiguous()
    rows, classes = increments.shape
    ratio = torch.empty_like(increments)
    slope = torch.empty_like(increments) if with_slope else increments.new_empty(0)
    backends.native().vmf_ratio(
        str(increments.dtype)[6:],
        nu,
        increments.data_ptr(),
        kappa.data_ptr(),
        ratio.data_ptr(),
        slope.data_ptr() if with_slope else 0,
        rows,
        classes,
        torch.get_num_threads(),
    )
    return ratio, slope


def vmf_cross_entropy(*arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
    return blocks.cross_entropy(_epilogue, *arguments, **options)


def vmf_log_sum_exp(
    features: Tensor,
    directions: Tensor,
    kappa: Tensor,
    log_prior: Tensor | None,
    temperature: float,
    reduction: str,
    with_gradient: bool,
    unit: float,
) -> tuple[Tensor, Tensor]:
    options = (temperature, -100, reduction, with_gradient, unit)
    return blocks.cross_entropy(_epilogue, features, None, directions, kappa, log_prior, *options)


def _epilogue(
    products: Tensor,
    start: int,
    count: int,
    features: Tensor,
    target: Tensor | None,
    directions: Tensor,
    kappa: Tensor,
    log_prior: Tensor | None,
    state: Tensor,
    loss: Tensor,
    gradient: Tensor | None,
    temperature: float,
    unit: float,
    ignore_index: int,
    mean: bool,
    mean_gradient: bool,
) -> int:
    rows, width = features.shape
    return backends.native().vmf_cross_entropy(
        str(features.dtype)[6:],
        width / 2 - 1,
        1 / temperature,
        unit,
        mean_gradient,
        products.data_ptr(),
        products.stride(0),
        features.data_ptr(),
        directions.data_ptr(),
        kappa.data_ptr(),
        0 if log_prior is None else log_prior.data_ptr(),
        0 if target is None else target.data_ptr(),
        ignore_index,
        state.data_ptr(),
        loss.data_ptr(),
        0 if gradient is None else gradient.data_ptr(),
        rows,
        len(directions),
        width,
        start,
        count,
        torch.get_num_threads(),
    )
