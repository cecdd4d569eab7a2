r"""The modified Bessel function of the first kind of any real order: its logarithm, and ratios of neighbouring orders.

.. math::

    \mathrm{log\_iv}(\nu, x) = \log I_\nu(x), \qquad A_\nu(x) = I_{\nu+1}(x) / I_\nu(x)

:math:`A_\nu` with :math:`\nu = D/2 - 1` is the mean resultant length of a von Mises-Fisher distribution on the sphere
in D dimensions. Both come from one expansion (debye.py) without overflow or underflow, and from these identities come
their derivatives:

.. math::

    \frac{d}{dx} \log I_\nu(x) = A_\nu(x) + \nu / x, \qquad A_\nu' = 1 - A_\nu^2 - (2\nu + 1) A_\nu / x
"""

import math
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ltfast.ops import backends, checks

__all__ = ["bessel_ratio", "log_iv"]


def log_iv(nu: float | Tensor, x: Tensor) -> Tensor:
    r"""The logarithm of the modified Bessel function, :math:`\log I_\nu(x)`, elementwise.

    Exact to 1e-12 relative to max(1, \|value\|) in float64 and to 5e-7 in float32 (which is computed in float64).

    Args:
        nu: the order, 0 or more; a number, or a tensor that broadcasts with x.
        x: float32 or float64, any shape, 0 or more. NaN and inf give NaN, as do negative values if nu is not 0.

    Returns:
        The shape of nu and x broadcast, the dtype of x. Three times differentiable in x; -inf at x = 0 for nu > 0.

    Raises:
        ValueError, TypeError: a bad argument, named.

    Source: F. W. J. Olver, DLMF 10.41.3.
    """
    return log_iv_op(*_arguments(nu, x))


def bessel_ratio(nu: float | Tensor, x: Tensor) -> Tensor:
    r"""The ratio of modified Bessel functions :math:`I_{\nu+1}(x) / I_\nu(x)`, elementwise; in [0, 1).

    Exact to 1e-12 relative in float64 and to 5e-7 in float32 (which is computed in float64).

    Args:
        nu: the order, 0 or more; a number, or a tensor that broadcasts with x.
        x: float32 or float64, any shape, 0 or more. NaN and inf give NaN.

    Returns:
        The shape of nu and x broadcast, the dtype of x. Twice differentiable in x.

    Raises:
        ValueError, TypeError: a bad argument, named.
    """
    return bessel_ratio_op(*_arguments(nu, x))


def _arguments(nu: float | Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    if not isinstance(x, Tensor):
        raise TypeError(f"x is a {type(x).__name__}: expected a tensor")
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"x has dtype {x.dtype}: expected float32 or float64")
    if not isinstance(nu, Tensor):
        checks.check_real("nu", nu)
        if not (math.isfinite(nu) and nu >= 0):
            raise ValueError(f"nu is {nu}: expected a finite order of 0 or more")
        return torch.full((), nu, dtype=torch.float64, device=x.device), x
    if nu.requires_grad:
        raise ValueError("nu requires a gradient: the functions are differentiated in x only")
    if nu.device != x.device:
        raise ValueError(f"nu is on {nu.device}: expected it where x is, on {x.device}")
    try:
        shape = torch.broadcast_shapes(nu.shape, x.shape)
    except RuntimeError:
        raise ValueError(
            f"nu has shape {tuple(nu.shape)}: expected one that broadcasts with {tuple(x.shape)}"
        ) from None
    nu = nu.double()
    return nu if nu.dim() == 0 else nu.expand(shape), x.expand(shape)


def _register(name: str, backward: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """The op ``ltfast::name(nu, x)`` with nu of x's shape or a scalar; backward takes nu, x and the op's result."""

    @torch.library.custom_op(f"ltfast::{name}", mutates_args=())
    def op(nu: Tensor, x: Tensor) -> Tensor:
        # the reference too runs in here: its derivatives are the identities above, not those of its arithmetic
        run = getattr(import_module(f"ltfast.ops.bessel.{backends.resolve(x.device)}"), name)
        if not x.is_cuda:
            return run(nu.contiguous(), x.contiguous())
        with torch.cuda.device_of(x):
            return run(nu.contiguous(), x.contiguous())

    @op.register_fake
    def _(nu: Tensor, x: Tensor) -> Tensor:
        return x.new_empty(x.shape)

    def setup(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)

    def gradient(ctx: Any, incoming: Tensor) -> tuple[None, Tensor]:
        nu, x, output = ctx.saved_tensors
        return None, incoming * backward(nu, x, output)

    op.register_autograd(gradient, setup_context=setup)
    return op


def _ratio_curvature(nu: Tensor, x: Tensor, slope: Tensor) -> Tensor:
    """The second derivative of the ratio: Bessel's equation differentiated, its series where that cancels."""
    nu = nu.to(x.dtype)
    ratio = bessel_ratio_op(nu.double(), x)
    bend = (slope - ratio / x) / x
    series = -x / (4 * (nu + 1) ** 2 * (nu + 2))
    bend = torch.where(x < 1e-3 * (nu + 1), series, bend)
    return -2 * ratio * slope - (2 * nu + 1) * bend


bessel_ratio_grad_op = _register("bessel_ratio_grad", _ratio_curvature)
bessel_ratio_op = _register("bessel_ratio", lambda nu, x, ratio: bessel_ratio_grad_op(nu, x))
log_iv_op = _register(
    "log_iv",
    # 0 / 0 at the origin, where log I_0 is flat
    lambda nu, x, value: bessel_ratio_op(nu, x) + torch.where(nu == 0, 0.0, nu / x.double()).to(x.dtype),
)
