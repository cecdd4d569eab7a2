"""The CPU path: csrc/ops/vmf.cpp between PyTorch's matrix products."""

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


def vmf_cross_entropy(*arguments: Any) -> tuple[Tensor, Tensor]:
    return blocks.cross_entropy(_epilogue, *arguments)


def _epilogue(products: Tensor, start: int, count: int, rows: blocks.Rows) -> Tensor:
    batch, width = rows.features.shape
    counted = backends.native().vmf_cross_entropy(
        str(rows.features.dtype)[6:],
        width / 2 - 1,
        1 / rows.settings.temperature,
        rows.unit,
        rows.mean_gradient,
        products.data_ptr(),
        products.stride(0),
        rows.features.data_ptr(),
        rows.directions.data_ptr(),
        rows.kappa.data_ptr(),
        0 if rows.log_prior is None else rows.log_prior.data_ptr(),
        0 if rows.target is None else rows.target.data_ptr(),
        rows.settings.ignore_index,
        rows.state.data_ptr(),
        rows.losses.data_ptr(),
        0 if rows.gradient is None else rows.gradient.data_ptr(),
        batch,
        len(rows.directions),
        width,
        start,
        count,
        torch.get_num_threads(),
    )
    if rows.settings.reduction == "none" or start + count < len(rows.directions):
        return rows.losses
    loss = rows.losses.sum()
    return loss / counted if rows.settings.reduction == "mean" else loss
