r"""Asymmetric Gaussian-clouded logit loss of LPT (Dong et al., "LPT: Long-tailed Prompt Tuning for Image
Classification", ICLR 2023, equations 6 to 8).

.. math::

    v_{ic} = s (x_{ic} - w_c |e_{ic}| - m [c = y_i]), \quad e \sim N(0, 1/3) \text{ clipped to } [-1, 1]

    L_i = -\bigl(a^+ (1 - p_y)^{\gamma^+} \log p_y + a^- \sum_{c \ne y} p_c^{\gamma^-} \log p_c\bigr),
    \quad p = \mathrm{softmax}(v_i)

The weights :math:`(1 - p_y)^{\gamma^+}` and :math:`p_c^{\gamma^-}` are differentiated through. With
:math:`f_c = \partial L / \partial \log p_c`, :math:`\partial L / \partial v_c = f_c - p_c \sum_k f_k`: one read of a
row's logits gives its loss and its gradient.
"""

import math
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ltfast.ops.agcl import reference
from ltfast.ops.core import checks
from ltfast.ops.core.dispatch import Kernels, Op
from ltfast.ops.core.fused_loss import FusedLoss
from ltfast.ops.core.tensors import accumulator
from ltfast.ops.noise import draw_seed

__all__ = ["agcl"]


def agcl(
    cosine: Tensor,
    target: Tensor,
    class_noise: Tensor | None = None,
    *,
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
        cosine: (B, C), float32, float64, bfloat16 or float16: logits before ``scale``, usually cosines. Any strides.
            Differences of scaled logits saturate at 2^100; a logit of -inf leaves its class out.
        target: (B,), integer labels in [0, C), or ``ignore_index``.
        class_noise: (C,): the width w_c of each class's cloud; None for no noise.
        scale: s, over 0.
        margin: m, taken from the logit of the label.
        weight_pos, weight_neg: a+ and a-.
        gamma_pos, gamma_neg: the focusing exponents, 0 or more.
        ignore_index: rows of this label have the loss 0 and no gradient, and are not in the mean, as in
            ``nn.CrossEntropyLoss``.
        reduction: "mean" over the batch, "sum", or "none".
        generator: where the seed of the noise comes from; None for PyTorch's global generator. It lives on
            the device of ``cosine``.

    Returns:
        The loss, a scalar, or (B,) for "none": float32, or float64 for float64 logits.

    Raises:
        ValueError, TypeError: a bad argument, named. Labels out of range raise on the CPU; in Triton they make the
            row NaN, and raise under ``LTFAST_CHECKS=1``.
        RuntimeError: in the backward pass, if the logits were changed in place after the loss.
    """
    checks.check_logits(cosine, "cosine")
    checks.check_labels(target, cosine, ignore_index=ignore_index)
    check_settings(scale, margin, weight_pos, weight_neg, gamma_pos, gamma_neg, reduction)
    seed = None
    if class_noise is not None:
        checks.check_class_vector(class_noise, cosine, "class_noise")
        seed = draw_seed(cosine.device, generator)
    options = (scale, margin, weight_pos, weight_neg, gamma_pos, gamma_neg, ignore_index, reduction)
    return AGCL(cosine, target, class_noise, seed, *options)


def check_settings(
    scale: float,
    margin: float,
    weight_pos: float,
    weight_neg: float,
    gamma_pos: float,
    gamma_neg: float,
    reduction: str,
) -> None:
    """Refuse what ``agcl`` cannot take, with a ValueError that names it."""
    checks.check_positive("scale", scale)
    checks.check_number("margin", margin)
    checks.check_number("weight_pos", weight_pos)
    checks.check_number("weight_neg", weight_neg)
    checks.check_number("gamma_pos", gamma_pos, at_least=0)
    checks.check_number("gamma_neg", gamma_neg, at_least=0)
    checks.check_reduction(reduction)


def _gradient_bound(logits: Tensor, *inputs: Any) -> float:
    """|f_c - p_c sum f| <= |f_y| + 2 sum |f_c|, with sum p^gamma <= C^(1 - gamma) below gamma = 1."""
    scale, _, weight_pos, weight_neg, gamma_pos, gamma_neg = inputs[3:9]
    classes = logits.shape[1]
    others = classes ** max(0.0, 1 - gamma_neg) * (1 + gamma_neg * math.log(classes))
    return scale * (2 * abs(weight_pos) * (1 + gamma_pos) + 2 * abs(weight_neg) * others) or 1.0


def _native() -> ModuleType:
    from ltfast.ops.agcl import native

    return native


def _triton() -> ModuleType:
    from ltfast.ops.agcl import triton

    return triton


KERNELS = Kernels(_native, _triton)
AGCL = FusedLoss(
    "agcl",
    reference.agcl,
    KERNELS,
    "Tensor logits, Tensor target, Tensor? class_noise, Tensor? seed, float scale, float margin, float weight_pos, "
    "float weight_neg, float gamma_pos, float gamma_neg, int ignore_index, str reduction, bool with_gradient",
    _gradient_bound,
)
CLASS_PARALLEL_AGCL = Op("class_parallel_agcl", reference.agcl_share, KERNELS)


def _run_share(
    backend: str,
    logits: Tensor,
    target: Tensor,
    class_noise: Tensor | None,
    *options: Any,
    statistics: Tensor,
    incoming: Any = None,
) -> Any:
    if class_noise is not None:
        class_noise = class_noise.to(accumulator(logits.dtype)).contiguous()
    arguments = (logits, target.long().contiguous(), class_noise, *options, statistics, incoming)
    return KERNELS.of(backend, logits.device).agcl_share(*arguments)


@torch.library.custom_op("ltfast::agcl_share", mutates_args=())
@CLASS_PARALLEL_AGCL.guarded
def agcl_share_op(
    logits: Tensor,
    target: Tensor,
    class_noise: Tensor | None,
    seed: Tensor | None,
    first: int,
    scale: float,
    margin: float,
    gamma_neg: float,
) -> Tensor:
    """What the loss needs of a share of the classes, (B, 5) float64: of the noisy logits u, with the margin, the
    largest; the label's, 0 where it is in another share; and over the other classes, with t = scale (u - largest), the
    sums of e^t, e^(gamma t) and t e^(gamma t). Target is the label's place in the share, or outside [0, C); the share's
    first class has the noise of column ``first``. The largest counts as a constant: no gradient flows through it.
    """
    statistics = torch.empty(len(logits), 5, dtype=torch.float64, device=logits.device)
    options = (seed, first, scale, margin, gamma_neg)
    backend = CLASS_PARALLEL_AGCL.resolve(logits.device)
    _run_share(backend, logits, target, class_noise, *options, statistics=statistics)
    return statistics


@agcl_share_op.register_fake
def _(logits: Tensor, *_: Any) -> Tensor:
    return logits.new_empty(len(logits), 5, dtype=torch.float64)


@torch.library.custom_op("ltfast::agcl_share_gradient", mutates_args=())
@CLASS_PARALLEL_AGCL.guarded
def agcl_share_gradient_op(
    logits: Tensor,
    target: Tensor,
    class_noise: Tensor | None,
    seed: Tensor | None,
    first: int,
    scale: float,
    margin: float,
    gamma_neg: float,
    statistics: Tensor,
    incoming: Tensor,
    backend: str,
) -> Tensor:
    """Of sum(incoming * statistics) in the logits: like them, contiguous."""
    options = (seed, first, scale, margin, gamma_neg)
    incoming = incoming.contiguous()
    return _run_share(backend, logits, target, class_noise, *options, statistics=statistics, incoming=incoming)


@agcl_share_gradient_op.register_fake
def _(logits: Tensor, *_: Any) -> Tensor:
    return logits.new_empty(logits.shape)


def _setup_share(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    logits, target, class_noise, seed, *ctx.options = inputs
    ctx.save_for_backward(logits, target, class_noise, seed, output)
    ctx.backend = CLASS_PARALLEL_AGCL.resolve(logits.device)


def _backward_share(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, statistics = ctx.saved_tensors
    if torch.is_grad_enabled():  # create_graph=True
        again = reference.agcl_share(*tensors, *ctx.options)
        (gradient,) = torch.autograd.grad(again, tensors[0], incoming, create_graph=True)
    else:
        gradient = agcl_share_gradient_op(*tensors, *ctx.options, statistics, incoming, ctx.backend)
    return gradient, *[None] * 7


agcl_share_op.register_autograd(_backward_share, setup_context=_setup_share)
