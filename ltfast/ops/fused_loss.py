"""What the fused losses share: an op returns ``(loss, gradient)``, and autograd only scales the gradient.

The forward pass of such an op reads the logits once and leaves d loss / d logits behind, so the backward pass has
nothing left to compute. It multiplies the stored gradient by the incoming one in place, and skips even that where the
incoming one is 1. (With ``retain_graph=True`` it makes a new product, so that the graph can be walked again; with
``create_graph=True`` it differentiates the reference.) The op's first argument is the logits, its last is
``with_gradient``; its arguments but the last are the reference's.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ltfast.ops import backends, kernels
from ltfast.ops.kernels import calls_kernels, is_plain
from ltfast.ops.scale_rows import scale_rows_

_library = torch.library.Library("ltfast", "DEF")

# A float16 gradient is stored so that its bound becomes this: divided by the batch size it would fall below the
# smallest float16 before a GradScaler can lift it. The largest float16 is 65504.
HALF_BOUND = 16384.0


def reduce(rows: Tensor, reduction: str) -> Tensor:
    """The loss of each row, their mean or their sum."""
    if reduction == "mean":
        return rows.mean()
    return rows.sum() if reduction == "sum" else rows


def _mean_factor(rows: int, reduction: str) -> float:
    return 1.0 / rows if reduction == "mean" else 1.0


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype of arithmetic and losses: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def one_hot(target: Tensor, logits: Tensor) -> Tensor:
    """True in the column of each row's label, (B, C). (``F.one_hot`` reads the labels, which ``vmap`` forbids.)"""
    return torch.zeros_like(logits, dtype=torch.bool).scatter(1, target[:, None], True)


def wants_gradient(logits: Tensor) -> bool:
    return logits.requires_grad and torch.is_grad_enabled()


def empty_loss(logits: Tensor, reduction: str) -> Tensor:
    """Where the loss goes: a scalar, or one value a row."""
    shape = logits.shape[:1] if reduction == "none" else ()
    return torch.empty(shape, dtype=accumulator(logits.dtype), device=logits.device)


def empty_gradient(logits: Tensor, with_gradient: bool) -> Tensor:
    """Where a kernel writes the gradient: like the logits and contiguous, or empty where nobody wants it."""
    shape = logits.shape if with_gradient else (0,)
    return torch.empty(shape, dtype=logits.dtype, device=logits.device)


def _dense(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Labels and class vectors as the kernels read them; the logits and soft targets bring strides and dtypes."""
    if x.dim() != 1:
        return x
    return x.to(dtype if x.is_floating_point() else torch.int64).contiguous()


def register(
    name: str,
    schema: str,
    reference: Callable[..., Tensor],
    bound: Callable[..., float],
    folder: str | None = None,
) -> Callable[..., tuple[Tensor, Tensor]]:
    """Register the op ``ltfast::name`` with its shapes and its backward pass.

    Its kernels are the functions ``name`` of ``ltfast/ops/folder/native.py`` and ``triton.py``: they take the op's
    arguments and ``unit``, the factor by which they multiply the gradient of the summed loss before they store it.

    (``torch.library.custom_op`` would do it in fewer lines, and take 200 us longer a step.)

    Args:
        schema: the arguments: the logits first, then "str reduction, bool with_gradient" last.
        reference: the differentiable definition, with the op's arguments but ``with_gradient``. It serves
            ``create_graph=True``, where the gradient itself must be differentiable.
        bound: of the op's inputs: the largest |d row's loss / d logit| that can be; see ``HALF_BOUND``.
        folder: of ``ltfast/ops``; None means the op's name.

    Returns:
        What to call: the op, or in plain eager mode the same without PyTorch's dispatcher, whose two round trips
        through Python take longer than a small batch.
    """
    _library.define(f"{name}({schema}) -> (Tensor loss, Tensor gradient)")
    op: Any = getattr(torch.ops.ltfast, name).default
    path = f"{folder or name}.{name}"

    def unit_of(inputs: Sequence[Any]) -> float:
        logits, reduction = inputs[0], inputs[-2]
        if logits.dtype == torch.float16:
            return HALF_BOUND / bound(*inputs)
        return _mean_factor(logits.shape[0], reduction)

    @calls_kernels(name)
    def kernel(*inputs: Any) -> tuple[Tensor, Tensor]:
        logits, *others = inputs
        dtype = accumulator(logits.dtype)
        others = [_dense(x, dtype) if isinstance(x, Tensor) else x for x in others]
        backend = backends.resolve_kernel(logits.device)
        return kernels.run(path, backend, logits.device, logits, *others, unit=unit_of(inputs))

    def fake(logits: Tensor, *inputs: Any) -> tuple[Tensor, Tensor]:
        reduction, with_gradient = inputs[-2:]
        return empty_loss(logits, reduction), empty_gradient(logits, with_gradient)

    def below_autograd(*inputs: Any) -> tuple[Tensor, Tensor]:
        if is_plain(inputs[0]):
            return kernel(*inputs)
        with torch._C._AutoDispatchBelowAutograd():
            return op(*inputs)

    class FusedLoss(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
            loss, gradient = below_autograd(*inputs)
            ctx.backend = backends.resolve_kernel(inputs[0].device)
            ctx.mark_non_differentiable(gradient)
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(gradient, *(x for x in inputs if isinstance(x, Tensor)))
            ctx.inputs = [None if isinstance(x, Tensor) else (x,) for x in inputs]
            return loss, gradient

        @staticmethod
        def backward(ctx: Any, grad_loss: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
            nothing = [None] * (len(ctx.inputs) - 1)
            if grad_loss is None:
                return None, *nothing
            gradient, *tensors = ctx.saved_tensors
            remaining = iter(tensors)
            inputs = [next(remaining) if x is None else x[0] for x in ctx.inputs]
            logits, reduction = inputs[0], inputs[-2]
            if torch.is_grad_enabled():  # create_graph=True
                (result,) = torch.autograd.grad(reference(*inputs[:-1]), logits, grad_loss, create_graph=True)
                return result, *nothing
            unit = _mean_factor(logits.shape[0], reduction) / unit_of(inputs)
            factor = grad_loss[:, None] if reduction == "none" else grad_loss
            # In place only where nobody needs the stored gradient again: not with retain_graph=True, not for batched
            # incoming gradients or ones with a forward-mode tangent, and not while a compiler traces with tensors of
            # its own (it fuses the product itself).
            plain = is_plain(gradient) and is_plain(factor)
            if plain and not torch._C._autograd._get_current_graph_task_keep_graph():
                scale_rows_(gradient, factor, unit, ctx.backend)
                return gradient, *nothing
            return (gradient.to(factor.dtype) * (factor * unit)).to(gradient.dtype), *nothing

    def autograd(*inputs: Any) -> tuple[Tensor, Tensor]:
        return FusedLoss.apply(*inputs) if inputs[-1] else below_autograd(*inputs)

    for key in ("CPU", "CUDA"):
        _library.impl(name, kernel, key)
    _library.impl(name, autograd, "Autograd")
    torch.library.register_fake(f"ltfast::{name}", fake, lib=_library)

    def call(*inputs: Any) -> tuple[Tensor, Tensor]:
        if torch.compiler.is_compiling() or not is_plain(inputs[0]):
            return op(*inputs)
        return autograd(*inputs)

    return call
