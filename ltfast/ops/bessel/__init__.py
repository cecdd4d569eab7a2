r"""The modified Bessel function of the first kind of any real order: its logarithm, and ratios of neighbouring orders.

.. math::

    \mathrm{log\_iv}(\nu, x) = \log I_\nu(x), \qquad A_\nu(x) = I_{\nu+1}(x) / I_\nu(x)

:math:`A_\nu` with :math:`\nu = D/2 - 1` is the mean resultant length of a von Mises-Fisher distribution on the sphere
in D dimensions. One expansion (debye.py) gives both without overflow or underflow, and these identities give their
derivatives:

.. math::

    \frac{d}{dx} \log I_\nu(x) = A_\nu(x) + \nu / x, \qquad A_\nu' = 1 - A_\nu^2 - (2\nu + 1) A_\nu / x
"""

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ltfast.ops.bessel import reference
from ltfast.ops.core import checks
from ltfast.ops.core.dispatch import Kernels, Op
from ltfast.ops.core.torch_internals import in_forward_mode, in_transform

__all__ = ["bessel_ratio", "log_iv"]


def log_iv(nu: float | Tensor, x: Tensor) -> Tensor:
    r"""The logarithm of the modified Bessel function, :math:`\log I_\nu(x)`, elementwise.

    The error relative to max(1, \|value\|) is below 1e-12 in float64, and below 5e-7 in float32, which is computed in
    float64.

    Args:
        nu: the order, 0 or more; a number, or a tensor that broadcasts with x.
        x: float32 or float64, any shape, 0 or more. NaN and inf give NaN, as do negative values if nu is not 0.

    Returns:
        The shape of nu and x broadcast, the dtype of x. Three times differentiable in x; -inf at x = 0 for nu > 0.

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it.

    Source: F. W. J. Olver, DLMF 10.41.3.
    """
    return _call("log_iv", nu, x)


def bessel_ratio(nu: float | Tensor, x: Tensor) -> Tensor:
    r"""The ratio of modified Bessel functions :math:`I_{\nu+1}(x) / I_\nu(x)`, elementwise; in [0, 1).

    The relative error is below 1e-12 in float64, and below 5e-7 in float32, which is computed in float64.

    Args:
        nu: the order, 0 or more; a number, or a tensor that broadcasts with x.
        x: float32 or float64, any shape, 0 or more. NaN and inf give NaN.

    Returns:
        The shape of nu and x broadcast, the dtype of x. Twice differentiable in x.

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it.
    """
    return _call("bessel_ratio", nu, x)


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
        raise ValueError(f"nu is on {nu.device}: expected the device of x, {x.device}")
    try:
        shape = torch.broadcast_shapes(nu.shape, x.shape)
    except RuntimeError:
        raise ValueError(
            f"nu has shape {tuple(nu.shape)}: expected one that broadcasts with {tuple(x.shape)}"
        ) from None
    nu = nu.double()
    return nu if nu.dim() == 0 else nu.expand(shape), x.expand(shape)


def _call(name: str, nu: float | Tensor, x: Tensor) -> Tensor:
    order, x = _arguments(nu, x)
    if OPS[name].choose(x) == "reference":
        return _evaluate(name, order, x, "reference")
    return _registered[name](order, x)


def _evaluate(name: str, nu: Tensor, x: Tensor, backend: str) -> Tensor:
    if backend == "reference" and not _is_compiled():
        return _Reference.apply(name, nu, x)
    return _registered[name](nu, x, backend)


def _is_compiled() -> bool:
    """A compiler cannot trace a function with a custom jvp, so it gets the op; but not where jvp or vmap is needed."""
    transformed = in_transform() or in_forward_mode()
    return torch.compiler.is_compiling() and not transformed


def _slope_of_log_iv(nu: Tensor, x: Tensor, backend: str) -> Tensor:
    # 0 / 0 at the origin, where log I_0 is flat
    ratio = _evaluate("bessel_ratio", nu, x, backend)
    return ratio + torch.where(nu == 0, 0.0, nu / x.double()).to(x.dtype)  # a large order is no float32


def _slope_of_ratio(nu: Tensor, x: Tensor, backend: str) -> Tensor:
    return _evaluate("bessel_ratio_grad", nu, x, backend)


def _curvature_of_ratio(nu: Tensor, x: Tensor, backend: str) -> Tensor:
    """Bessel's equation differentiated, its series where that cancels."""
    ratio, slope = (_evaluate(name, nu, x, backend) for name in ("bessel_ratio", "bessel_ratio_grad"))
    nu = nu.to(x.dtype)
    bend = (slope - ratio / x) / x
    series = -x / (4 * (nu + 1) ** 2 * (nu + 2))
    bend = torch.where(x < 1e-3 * (nu + 1), series, bend)
    return -2 * ratio * slope - (2 * nu + 1) * bend


# The reference has these derivatives too: those of its arithmetic would lose digits.
_DERIVATIVES: dict[str, Callable[[Tensor, Tensor, str], Tensor]] = {
    "log_iv": _slope_of_log_iv,
    "bessel_ratio": _slope_of_ratio,
    "bessel_ratio_grad": _curvature_of_ratio,
}


def _native() -> ModuleType:
    from ltfast.ops.bessel import native

    return native


def _triton() -> ModuleType:
    from ltfast.ops.bessel import triton

    return triton


_KERNELS = Kernels(_native, _triton)
OPS = {
    "log_iv": Op("log_iv", reference.log_iv, _KERNELS),
    "bessel_ratio": Op("bessel_ratio", reference.bessel_ratio, _KERNELS),
    "bessel_ratio_grad": Op("bessel_ratio_grad", reference.bessel_ratio_grad, _KERNELS),  # inside derivatives alone
}


class _Reference(torch.autograd.Function):
    """A function of reference.py, for torch.func too."""

    generate_vmap_rule = True

    @staticmethod
    def forward(name: str, nu: Tensor, x: Tensor) -> Tensor:
        return OPS[name].reference(nu, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[str, Tensor, Tensor], output: Tensor) -> None:
        ctx.name, nu, x = inputs
        ctx.save_for_backward(nu, x)
        ctx.save_for_forward(nu, x)

    @staticmethod
    def backward(ctx: Any, incoming: Tensor) -> tuple[None, None, Tensor]:
        nu, x = ctx.saved_tensors
        return None, None, incoming * _DERIVATIVES[ctx.name](nu, x, "reference")

    @staticmethod
    def jvp(ctx: Any, _name: None, _nu: None, tangent: Tensor) -> Tensor:
        nu, x = ctx.saved_tensors
        return tangent * _DERIVATIVES[ctx.name](nu, x, "reference")


def _register(name: str) -> Callable[..., Tensor]:
    """The op ``ltfast::name(nu, x, backend)`` with nu of x's shape or a scalar."""

    @torch.library.custom_op(f"ltfast::{name}", mutates_args=())
    @OPS[name].guarded
    def op(nu: Tensor, x: Tensor, backend: str | None = None) -> Tensor:
        """``backend`` is "reference" if that is compiled; in a derivative it is the backend of the function."""
        backend = backend or OPS[name].resolve(x.device)
        kernels = reference if backend == "reference" else OPS[name].kernels.of(backend, x.device)
        return getattr(kernels, name)(nu.contiguous(), x.contiguous())

    @op.register_fake
    def _(nu: Tensor, x: Tensor, backend: str | None = None) -> Tensor:
        return x.new_empty(x.shape)

    def setup(ctx: Any, inputs: tuple[Tensor, Tensor, str | None], output: Tensor) -> None:
        nu, x, backend = inputs
        ctx.backend = backend or OPS[name].resolve(x.device)
        ctx.save_for_backward(nu, x)

    def gradient(ctx: Any, incoming: Tensor) -> tuple[None, Tensor, None]:
        nu, x = ctx.saved_tensors
        return None, incoming * _DERIVATIVES[name](nu, x, ctx.backend), None

    op.register_autograd(gradient, setup_context=setup)
    return op


_registered = {name: _register(name) for name in OPS}
log_iv_op, bessel_ratio_op, bessel_ratio_grad_op = _registered.values()
