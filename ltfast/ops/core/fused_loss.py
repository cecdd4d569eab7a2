"""What the fused losses share: an op returns ``(loss, gradient)``, and autograd only scales the gradient.

The forward pass of such an op reads the logits once and stores d loss / d logits, so the backward pass has nothing left
to compute. It multiplies the stored gradient by the incoming one in place, and skips even that where the incoming one
is 1. (With ``retain_graph=True`` it makes a new product, so that the graph can be walked again; with
``create_graph=True`` it differentiates the reference.) Rows with the label ``ignore_index`` have the loss 0 and no
gradient, and the mean is over the other rows: NaN if there are none, as for ``nn.CrossEntropyLoss``. An empty batch
runs no kernel.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ltfast.ops.core.dispatch import Op, kernel_context, refuse_tangents
from ltfast.ops.core.scale_rows import scale_rows_
from ltfast.ops.core.settings import schema_of
from ltfast.ops.core.tensors import accumulator, empty_gradient, empty_loss, wants_gradient
from ltfast.ops.core.torch_internals import below_autograd, is_plain, keeps_graph

_library = torch.library.Library("ltfast", "DEF")

# A float16 gradient is stored so that its bound becomes this: divided by the batch size it would fall below the
# smallest float16 before a GradScaler can lift it. The largest float16 is 65504.
HALF_BOUND = 16384.0


@dataclass(eq=False)
class FusedLoss(Op):
    """The op ``ltfast::name``, registered with its shapes and its backward pass; a call returns its loss.

    Its reference takes the op's tensors and its settings. Its kernels are the functions ``name`` of ``native.py`` and
    ``triton.py``: they take the tensors, the settings, ``with_gradient`` and ``unit``, the factor by which they
    multiply the gradient of the summed loss before they store it. For the mean they divide by the number of rows that
    count too, except for a float16 gradient, which the backward pass divides.

    (``torch.library.custom_op`` would do it in fewer lines, and take 200 us longer a step.)

    Attributes:
        reference: the definition, differentiable. It serves ``create_graph=True`` too, where the gradient itself must
            be differentiable.
        tensors: the tensors in the op's schema, "Tensor logits, Tensor target, Tensor? bias": the logits are first, and
            the target is second. Only the logits get a gradient.
        settings: a ``NamedTuple``, with ``reduction`` and ``ignore_index``.
        bound: (logits, other tensors, settings) -> the largest possible |d row's loss / d logit|; see ``HALF_BOUND``.
        registered: the op in ``torch.ops``.
    """

    tensors: str
    settings: type[Any]
    bound: Callable[[Tensor, Sequence[Tensor | None], Any], float]
    registered: Callable[..., tuple[Tensor, Tensor]] = field(init=False)

    def __post_init__(self) -> None:
        arguments = f"{self.tensors}, {schema_of(self.settings)}, bool with_gradient"
        _library.define(f"{self.name}({arguments}) -> (Tensor loss, Tensor gradient)")
        self.registered = getattr(torch.ops.ltfast, self.name).default
        for key in ("CPU", "CUDA"):
            _library.impl(self.name, self._on_device, key)
        _library.impl(self.name, self._with_autograd, "Autograd")
        torch.library.register_fake(f"ltfast::{self.name}", self._fake, lib=_library)

    def __call__(self, logits: Tensor, *inputs: Any) -> Tensor:
        """The loss: a scalar, or (B,) for the reduction "none".

        In plain eager mode the call bypasses PyTorch's dispatcher, whose two round trips through Python take longer
        than a small batch.

        Args:
            logits: the first tensor.
            inputs: the other tensors, then the settings.
        """
        backend = self.choose(logits)
        if backend == "reference":
            return self.reference(logits, *inputs)
        *others, settings = inputs
        with_gradient = wants_gradient(logits)
        if torch.compiler.is_compiling() or not is_plain(logits):
            return self.registered(logits, *others, *settings, with_gradient)[0]
        if with_gradient:
            return _StoredGradient.apply(logits, _Call(self, others, settings, backend, True))[0]
        return self.run(backend, logits, others, settings, False)[0]

    def run(
        self,
        backend: str,
        logits: Tensor,
        others: Sequence[Tensor | None],
        settings: Any,
        with_gradient: bool,
        *,
        unit: float | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Call the kernel. ``unit`` is the factor of the gradient, or None for ``self.unit``."""
        refuse_tangents(self.name, (logits, *others))
        if not len(logits):
            loss = empty_loss(logits, settings.reduction).fill_(math.nan if settings.reduction == "mean" else 0)
            return loss, empty_gradient(logits, with_gradient)
        dtype = accumulator(logits.dtype)
        tidy = [None if x is None else _dense(x, dtype) for x in others]
        kernel = getattr(self.kernels.of(backend, logits.device), self.name)
        with kernel_context(logits.device):
            unit = self.unit(logits, others, settings) if unit is None else unit
            return kernel(logits, *tidy, settings, with_gradient, unit)

    def unit(self, logits: Tensor, others: Sequence[Tensor | None], settings: Any) -> float:
        """The factor with which a gradient is stored."""
        return HALF_BOUND / self.bound(logits, others, settings) if logits.dtype == torch.float16 else 1.0

    def divisor(self, logits: Tensor, target: Tensor | None, settings: Any) -> Tensor | int:
        """The number by which the backward pass has to divide a stored gradient for the mean."""
        if settings.reduction != "mean" or logits.dtype != torch.float16:
            return 1
        if target is None or target.dim() > 1:  # soft targets are not ignored
            return logits.shape[0] or 1
        return (target.long() != settings.ignore_index).sum().clamp(min=1)

    def _parsed(self, inputs: Sequence[Any]) -> tuple[Tensor, list[Tensor | None], Any, bool]:
        """The arguments of the op's schema as logits, other tensors, settings and ``with_gradient``."""
        tensors = self.tensors.count("Tensor")
        logits, *others = inputs[:tensors]
        return logits, others, self.settings(*inputs[tensors:-1]), inputs[-1]

    def _on_device(self, *inputs: Any) -> tuple[Tensor, Tensor]:
        """Called by PyTorch's dispatcher for tensors in memory."""
        return self.run(self.resolve(inputs[0].device), *self._parsed(inputs))

    def _with_autograd(self, *inputs: Any) -> tuple[Tensor, Tensor]:
        """Called by PyTorch's dispatcher first."""
        logits, others, settings, with_gradient = self._parsed(inputs)
        if with_gradient:
            backend = self.resolve(logits.device)
            return _StoredGradient.apply(logits, _Call(self, others, settings, backend, is_plain(logits)))
        with below_autograd():
            return self.registered(*inputs)

    def _fake(self, *inputs: Any) -> tuple[Tensor, Tensor]:
        """Shapes and dtypes, for compilers."""
        logits, _, settings, with_gradient = self._parsed(inputs)
        return empty_loss(logits, settings.reduction), empty_gradient(logits, with_gradient)


@dataclass(eq=False, slots=True)
class _Call:
    """A call of a fused loss, without its logits."""

    op: FusedLoss
    others: Sequence[Tensor | None]
    settings: Any
    backend: str
    plain: bool


class _StoredGradient(torch.autograd.Function):
    """A fused loss whose gradient is wanted. The tensors beside the logits have no gradient, so they are passed inside
    one object: PyTorch spends time on each argument."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, call: _Call) -> tuple[Tensor, Tensor]:
        if call.plain:
            loss, gradient = call.op.run(call.backend, logits, call.others, call.settings, True)
        else:
            with below_autograd():
                loss, gradient = call.op.registered(logits, *call.others, *call.settings, True)
        ctx.op, ctx.settings, ctx.backend = call.op, call.settings, call.backend
        ctx.mark_non_differentiable(gradient)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(gradient, logits, *call.others)
        return loss, gradient

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, _: Any) -> tuple[Tensor | None, None]:
        if grad_loss is None:
            return None, None
        gradient, logits, *others = ctx.saved_tensors
        op, settings = ctx.op, ctx.settings
        if torch.is_grad_enabled():  # create_graph=True
            again = op.reference(logits, *others, settings)
            return torch.autograd.grad(again, logits, grad_loss, create_graph=True)[0], None
        unit, count = 1 / op.unit(logits, others, settings), op.divisor(logits, others[0], settings)
        factor = grad_loss[:, None] if settings.reduction == "none" else grad_loss
        if isinstance(count, Tensor):
            factor = factor / count
        else:
            unit /= count
        # In place only where nobody needs the stored gradient again: not with retain_graph=True, not for batched
        # incoming gradients or ones with a forward-mode tangent, and not while a compiler traces with tensors of
        # its own (it fuses the product itself).
        if is_plain(gradient) and is_plain(factor) and not keeps_graph():
            scale_rows_(gradient, factor, unit, ctx.backend)
            return gradient, None
        return (gradient.to(factor.dtype) * (factor * unit)).to(gradient.dtype), None


def _dense(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Labels and class vectors as the kernels read them. The logits and soft targets keep their strides and dtypes."""
    if x.dim() != 1:
        return x
    return x.to(dtype if x.is_floating_point() else torch.int64).contiguous()
