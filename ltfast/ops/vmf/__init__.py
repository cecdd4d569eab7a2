r"""ProCo's expected contrastive logits (Du et al., "Probabilistic Contrastive Learning for Long-Tailed Visual
Recognition", TPAMI 2024): with class c's features following a von Mises-Fisher distribution of mean direction
:math:`\mu_c` and concentration :math:`\kappa_c` on the sphere in D dimensions,

.. math::

    \ell_{ic} = \log E\, e^{z_i \cdot f_c / \tau} = F(\kappa'_{ic}) - F(\kappa_c), \qquad
    \kappa'_{ic} = \lVert \kappa_c \mu_c + z_i / \tau \rVert, \qquad
    F(\kappa) = \log I_\nu(\kappa) - \nu \log \kappa, \quad \nu = D / 2 - 1

:math:`\kappa_{ic}'^2 = \kappa_c^2 + (2 \kappa_c / \tau)\, \mu_c \cdot z_i + \lVert z_i \rVert^2 / \tau^2` is a matrix
product. With :math:`s = \sqrt{\nu^2 + \kappa^2}` and :math:`d = s' - s` the expansion of ``ltfast.ops.bessel`` gives
the difference without cancellation,

.. math::

    F(\kappa') - F(\kappa) = d - \nu\, \mathrm{log1p}\frac{d}{\nu + s} - \tfrac12 \mathrm{log1p}\frac{d}{s}
    + \sum_k [p'^k d_k(q') - p^k d_k(q)]

and its derivative is :math:`dF / d(\kappa^2) = I_{\nu+1}(\kappa) / (2 \kappa I_\nu(\kappa))`. So loss and gradient cost
two matrix products and an elementwise epilogue.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ltfast.ops.core import checks
from ltfast.ops.core.dispatch import Kernels, Op
from ltfast.ops.core.fused_loss import FusedLoss
from ltfast.ops.core.tensors import accumulator, wants_gradient
from ltfast.ops.vmf import reference
from ltfast.ops.vmf.settings import VmfSettings

__all__ = ["vmf_cross_entropy", "vmf_logits"]


def vmf_logits(features: Tensor, directions: Tensor, kappa: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Expected contrastive logits; see the module's docstring for the formula.

    Args:
        features: (B, D) with D at least 2, float32, float64, bfloat16 or float16: z, usually of length 1.
        directions: (C, D), any float dtype: the mean directions, of length 1. They have no gradient.
        kappa: (C,), any float dtype: the concentrations, 0 or more. They have no gradient.
        temperature: tau, positive.

    Returns:
        (B, C), float32, or float64 for float64 features; differentiable in the features any number of times.

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it.
    """
    check_arguments(features, directions, kappa, temperature)
    dtype, nu = accumulator(features.dtype), features.shape[1] / 2 - 1
    with torch.autocast(features.device.type, enabled=False):  # half-precision products would not do
        z, k = reference.saturated(features.to(dtype)), reference.saturated(kappa.to(dtype))
        # kappa outside the product: if the backward pass is inside autocast, its product is in half precision, and the
        # gradient times kappa is small, whereas directions times kappa may exceed the largest float16
        products, squares = z @ directions.to(dtype).T, z.square().sum(1, keepdim=True) / temperature**2
        increments = torch.addcmul(squares, products, 2 / temperature * k)
        if VMF_LOGITS.choose(features) == "reference":
            return reference.vmf_ratio(increments, k, nu)
        return vmf_ratio_op(increments, k, nu, wants_gradient(increments))[0]


def vmf_cross_entropy(
    features: Tensor,
    target: Tensor,
    directions: Tensor,
    kappa: Tensor,
    *,
    log_prior: Tensor | None = None,
    temperature: float = 0.1,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """``cross_entropy(vmf_logits(features, directions, kappa) + log_prior, target)`` without its (B, C) matrices.

    Args:
        features: (B, D) with D at least 2, float32, float64, bfloat16 or float16: z, usually of length 1. Any strides.
        target: (B,), integer labels in [0, C), or ``ignore_index``.
        directions: (C, D), any float dtype: the mean directions, of length 1. They have no gradient.
        kappa: (C,), any float dtype: the concentrations, 0 or more. They have no gradient.
        log_prior: (C,), added to the logits (logit adjustment), or None.
        temperature: tau, positive.
        ignore_index: rows with this label have a loss of 0 and no gradient, and do not count in the mean, as in
            ``nn.CrossEntropyLoss``.
        reduction: "mean" over the batch, "sum", or "none".

    Returns:
        The loss, a scalar, or (B,) for "none": float32, or float64 for float64 features.

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it. Labels out of range raise on the CPU; in
            Triton they make the row NaN, and raise under ``LTFAST_CHECKS=1``.
        RuntimeError: in the backward pass, if the features were changed in place after the loss.
    """
    check_arguments(features, directions, kappa, temperature)
    checks.check_reduction(reduction)
    checks.check_labels(target, features, classes=len(directions), ignore_index=ignore_index)
    if log_prior is not None:
        checks.check_class_vector(log_prior, directions.T, "log_prior")
    settings = VmfSettings(temperature, ignore_index, reduction)
    return VMF_CROSS_ENTROPY(features, target, directions, kappa, log_prior, settings)


def check_arguments(features: Tensor, directions: Tensor, kappa: Tensor, temperature: float) -> None:
    """Raise an error that names the argument that the functions cannot take."""
    checks.check_matrix(features, "features", "(batch, width)", fewest_rows=0)
    checks.check_matrix(directions, "directions", "(classes, width)")
    if features.shape[1] < 2:
        raise ValueError(f"features has shape {tuple(features.shape)}: expected a width of at least 2")
    if directions.shape[1] != features.shape[1]:
        expected = f"(classes, {features.shape[1]}), the features' width"
        raise ValueError(f"directions has shape {tuple(directions.shape)}: expected {expected}")
    checks.check_device(directions, features, "directions")
    checks.check_class_vector(kappa, directions.T, "kappa")
    for name, statistic in (("directions", directions), ("kappa", kappa)):
        if statistic.requires_grad:
            raise ValueError(f"{name} requires a gradient: the functions are differentiated in the features only")
    checks.check_positive("temperature", temperature)


def _native() -> ModuleType:
    from ltfast.ops.vmf import native

    return native


def _triton() -> ModuleType:
    from ltfast.ops.vmf import triton

    return triton


KERNELS = Kernels(_native, _triton)
VMF_LOGITS = Op("vmf_logits", reference.vmf_ratio, KERNELS)


@torch.library.custom_op("ltfast::vmf_ratio", mutates_args=())
@VMF_LOGITS.guarded
def vmf_ratio_op(increments: Tensor, kappa: Tensor, nu: float, with_slope: bool) -> tuple[Tensor, Tensor]:
    """F(k') - F(k) for k'^2 = k^2 + increment, and its derivative in the increment (or nothing)."""
    if not len(increments):
        return torch.empty_like(increments), increments.new_empty(increments.shape if with_slope else 0)
    device = increments.device
    kernels = KERNELS.of(VMF_LOGITS.resolve(device), device)
    return kernels.vmf_ratio(increments.contiguous(), kappa.contiguous(), nu, with_slope)


@vmf_ratio_op.register_fake
def _(increments: Tensor, kappa: Tensor, nu: float, with_slope: bool) -> tuple[Tensor, Tensor]:
    return increments.new_empty(increments.shape), increments.new_empty(increments.shape if with_slope else 0)


def _setup_ratio(ctx: Any, inputs: tuple[Tensor, Tensor, float, bool], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:2], output[1])
    ctx.nu = inputs[2]


def _backward_ratio(ctx: Any, incoming: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
    increments, kappa, slope = ctx.saved_tensors
    if torch.is_grad_enabled():  # create_graph=True
        ratio = reference.vmf_ratio(increments, kappa, ctx.nu)
        return torch.autograd.grad(ratio, increments, incoming, create_graph=True)[0], None, None, None
    return incoming * slope, None, None, None


vmf_ratio_op.register_autograd(_backward_ratio, setup_context=_setup_ratio)

# without a target it returns the log-sum-exp of the logits
VMF_CROSS_ENTROPY = FusedLoss(
    "vmf_cross_entropy",
    reference.vmf_cross_entropy,
    KERNELS,
    "Tensor features, Tensor? target, Tensor directions, Tensor kappa, Tensor? log_prior",
    VmfSettings,
    bound=lambda features, others, settings: 2 / settings.temperature,  # the gradient of a logit is at most half of it
)
