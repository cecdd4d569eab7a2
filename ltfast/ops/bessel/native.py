"""The CPU kernels: csrc/ops/bessel.cpp."""

import torch
from torch import Tensor

from ltfast.ops.core import backends


def log_iv(nu: Tensor, x: Tensor) -> Tensor:
    return _elementwise("log_iv", nu, x)


def bessel_ratio(nu: Tensor, x: Tensor) -> Tensor:
    return _elementwise("bessel_ratio", nu, x)


def bessel_ratio_grad(nu: Tensor, x: Tensor) -> Tensor:
    return _elementwise("bessel_ratio_grad", nu, x)


def _elementwise(function: str, nu: Tensor, x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    backends.native().bessel(
        function,
        str(x.dtype)[6:],
        nu.data_ptr(),
        int(nu.dim() > 0),
        x.data_ptr(),
        out.data_ptr(),
        x.numel(),
        torch.get_num_threads(),
    )
    return out
