r"""Asymmetric Gaussian-clouded logit loss of LPT (Dong et al., "LPT: Long-tailed Prompt Tuning for Image
Classification", ICLR 2023, equations 6 to 8).

.. math::

    v_{ic} = s (x_{ic} - w_c |e_{ic}| - m [c = y_i]), \quad e \sim N(0, 1/3) \text{ clipped to } [-1, 1]

    L_i = -\bigl(a^+ q_y (1 - p_y)^{\gamma^+} \log p_y + a^- \sum_{c \ne y} q_c p_c^{\gamma^-} \log p_c\bigr),
    \quad p = \mathrm{softmax}(v_i)

with class weights :math:`q`, which are 1 in the paper.
The gradient includes the weights :math:`(1 - p_y)^{\gamma^+}` and :math:`p_c^{\gamma^-}`. With
:math:`f_c = \partial L / \partial \log p_c`, :math:`\partial L / \partial v_c = f_c - p_c \sum_k f_k`: one read of a
row's logits gives its loss and its gradient.
"""

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ltfast.ops.agcl import reference
from ltfast.ops.agcl.settings import AgclSettings, AgclShareSettings, check_settings
from ltfast.ops.core import checks
from ltfast.ops.core.dispatch import Kernels, Op
from ltfast.ops.core.fused_loss import HALF_BOUND, FusedLoss
from ltfast.ops.core.settings import schema_of
from ltfast.ops.core.tensors import accumulator, mean_weight
from ltfast.ops.noise import draw_seed

__all__ = ["agcl"]


def agcl(
    cosine: Tensor,
    target: Tensor,
    class_noise: Tensor | None = None,
    *,
    weight: Tensor | None = None,
    scale: float = 20.0,
    margin: float = 0.1,
    weight_pos: float = 1.0,
    weight_neg: float = 1.0,
    gamma_pos: float = 0.0,
    gamma_neg: float = 4.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Asymmetric Gaussian-clouded logit loss; see the module's docstring for the formula.

    Args:
        cosine: (B, C), float32, float64, bfloat16 or float16: the logits before their product with ``scale``, usually
            cosines. Any strides. Differences of scaled logits saturate at 2^100; a logit of -inf excludes its class.
        target: (B,), integer labels in [0, C), or ``ignore_index``.
        class_noise: (C,), the noise width w_c of each class; None for no noise.
        weight: (C,): q_c, or None for 1.
        scale: s, positive.
        margin: m, subtracted from the logit of the label.
        weight_pos, weight_neg: a+ and a-.
        gamma_pos, gamma_neg: the focusing exponents, 0 or more.
        ignore_index: rows with this label have a loss of 0 and no gradient, and do not count in the mean, as in
            ``nn.CrossEntropyLoss``.
        reduction: "mean", "sum", or "none". The mean divides by the sum of the weights of the labels.
        generator: the generator, on the device of ``cosine``, that draws the seed of the noise; None for the global
            generator of PyTorch.

    Returns:
        The loss, a scalar, or (B,) for "none": float32, or float64 for float64 logits.

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it. Labels out of range raise on the CPU; in
            Triton they make the row NaN, and raise under ``LTFAST_CHECKS=1``.
        RuntimeError: in the backward pass, if the logits were changed in place after the loss.
    """
    settings = AgclSettings(scale, margin, weight_pos, weight_neg, gamma_pos, gamma_neg, ignore_index, reduction)
    checks.check_logits(cosine, "cosine")
    checks.check_labels(target, cosine, ignore_index=ignore_index)
    check_settings(settings)
    seed = None
    if class_noise is not None:
        checks.check_class_vector(class_noise, cosine, "class_noise")
        seed = draw_seed(cosine.device, generator)
    if weight is not None:
        checks.check_class_vector(weight, cosine, "weight")
        if reduction == "mean":
            weight = mean_weight(weight.to(accumulator(cosine.dtype)), target.long(), ignore_index)
    return AGCL(cosine, target, class_noise, weight, seed, settings)


def _gradient_bound(logits: Tensor, others: Sequence[Tensor | None], settings: AgclSettings) -> float:
    """|f_c - p_c sum f| <= |f_y| + 2 sum |f_c|, with sum p^gamma <= C^(1 - gamma) below gamma = 1. Weights have no
    bound that is known here: with them a float16 gradient is stored as it is."""
    if others[2] is not None:
        return HALF_BOUND
    classes = logits.shape[1]
    negative = classes ** max(0.0, 1 - settings.gamma_neg) * (1 + settings.gamma_neg * math.log(classes))
    positive = abs(settings.weight_pos) * (1 + settings.gamma_pos)
    return settings.scale * (2 * positive + 2 * abs(settings.weight_neg) * negative) or 1.0


def _native() -> ModuleType:
    from ltfast.ops.agcl import native

    return native


def _triton() -> ModuleType:
    from ltfast.ops.agcl import triton

    return triton


_TENSORS = "Tensor logits, Tensor target, Tensor? class_noise, Tensor? class_weight, Tensor? seed"
_SHARE_TENSORS = "Tensor logits, Tensor target, Tensor? class_noise, Tensor? seed"
KERNELS = Kernels(_native, _triton)
AGCL = FusedLoss("agcl", reference.agcl, KERNELS, _TENSORS, AgclSettings, _gradient_bound)
CLASS_PARALLEL_AGCL = Op("class_parallel_agcl", reference.agcl_share, KERNELS)


def run_share(
    backend: str,
    logits: Tensor,
    target: Tensor,
    class_noise: Tensor | None,
    seed: Tensor | None,
    settings: AgclShareSettings,
    statistics: Tensor,
    incoming: Tensor | None,
) -> Any:
    """Write the statistics of a share; or, with the ``incoming`` gradient in them, return that in the logits."""
    if not len(logits):
        return torch.empty_like(logits, memory_format=torch.contiguous_format)
    if class_noise is not None:
        class_noise = class_noise.to(accumulator(logits.dtype)).contiguous()
    arguments = (logits, target.long().contiguous(), class_noise, seed, settings, statistics, incoming)
    return KERNELS.of(backend, logits.device).agcl_share(*arguments)


@CLASS_PARALLEL_AGCL.guarded
def _share(logits: Tensor, target: Tensor, class_noise: Tensor | None, seed: Tensor | None, *settings: Any) -> Tensor:
    """The contribution of a share of the classes to the loss, (B, 5) float64. Of the noisy logits u, with the margin:

    the largest; the label's, or 0 if it is in another share; and over the other classes, with t = scale (u - largest),
    the sums of e^t, e^(gamma t) and t e^(gamma t). The target is the label's place in the share, or outside [0, C).
    The largest counts as a constant: no gradient flows through it.
    """
    statistics = torch.empty(len(logits), 5, dtype=torch.float64, device=logits.device)
    backend = CLASS_PARALLEL_AGCL.resolve(logits.device)
    run_share(backend, logits, target, class_noise, seed, AgclShareSettings(*settings), statistics, None)
    return statistics


_SETTINGS = schema_of(AgclShareSettings)
agcl_share_op = torch.library.custom_op(
    "ltfast::agcl_share",
    _share,
    mutates_args=(),
    schema=f"({_SHARE_TENSORS}, {_SETTINGS}) -> Tensor",
)


@agcl_share_op.register_fake
def _(logits: Tensor, *_: Any) -> Tensor:
    return logits.new_empty(len(logits), 5, dtype=torch.float64)


@CLASS_PARALLEL_AGCL.guarded
def _share_gradient(
    logits: Tensor,
    target: Tensor,
    class_noise: Tensor | None,
    seed: Tensor | None,
    statistics: Tensor,
    incoming: Tensor,
    backend: str,
    *settings: Any,
) -> Tensor:
    """The gradient of sum(incoming * statistics) in the logits: of their shape and dtype, contiguous."""
    share = AgclShareSettings(*settings)
    return run_share(backend, logits, target, class_noise, seed, share, statistics, incoming.contiguous())


agcl_share_gradient_op = torch.library.custom_op(
    "ltfast::agcl_share_gradient",
    _share_gradient,
    mutates_args=(),
    schema=f"({_SHARE_TENSORS}, Tensor statistics, Tensor incoming, str backend, {_SETTINGS}) -> Tensor",
)


@agcl_share_gradient_op.register_fake
def _(logits: Tensor, *_: Any) -> Tensor:
    return logits.new_empty(logits.shape)


def _setup_share(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    logits, target, class_noise, seed, *settings = inputs
    ctx.settings = AgclShareSettings(*settings)
    ctx.save_for_backward(logits, target, class_noise, seed, output)
    ctx.backend = CLASS_PARALLEL_AGCL.resolve(logits.device)


def _backward_share(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
    logits, target, class_noise, seed, statistics = ctx.saved_tensors
    tensors = (logits, target, class_noise, seed)
    if torch.is_grad_enabled():  # create_graph=True
        again = reference.agcl_share(*tensors[:4], ctx.settings)
        (gradient,) = torch.autograd.grad(again, logits, incoming, create_graph=True)
    else:
        gradient = agcl_share_gradient_op(*tensors, statistics, incoming, ctx.backend, *ctx.settings)
    return gradient, None, None, None, *[None] * len(ctx.settings)


agcl_share_op.register_autograd(_backward_share, setup_context=_setup_share)
