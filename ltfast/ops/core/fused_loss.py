"""What the fused losses share: an op returns ``(loss, gradient)``, and autograd only scales the gradient.

The forward pass of such an op reads the logits once and leaves d loss / d logits behind, so the backward pass has
nothing left to compute. It multiplies the stored gradient by the incoming one in place, and skips even that where the
incoming one is 1. (With ``retain_graph=True`` it makes a new product, so that the graph can be walked again; with
``create_graph=True`` it differentiates the reference.) The op's first argument is the logits, its last is
``with_gradient``; its arguments but the last are the reference's. Rows with the label ``ignore_index`` have the loss 0
and no gradient, and the mean is over the others: NaN where there are none, as ``nn.CrossEntropyLoss`` has it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ltfast.ops.core.dispatch import Op, choose, kernel_context, refuse_tangents
from ltfast.ops.core.scale_rows import scale_rows_
from ltfast.ops.core.tensors import accumulator, empty_gradient, empty_loss, wants_gradient
from ltfast.ops.core.torch_internals import below_autograd, is_plain, keeps_graph

_library = torch.library.Library("ltfast", "DEF")

# A float16 gradient is stored so that its bound becomes this: divided by the batch size it would fall below the
# smallest float16 before a GradScaler can lift it. The largest float16 is 65504.
HALF_BOUND = 16384.0


@dataclass(eq=False)
class FusedLoss(Op):
    """The op ``ltfast::name``, registered with its shapes and its backward pass; a call gives its loss.

    Its kernels are the functions ``name`` of ``native.py`` and ``triton.py``: they take the op's arguments and
    ``unit``, the factor by which they multiply the gradient of the summed loss before they store it. For the mean they
    divide by the number of rows that count too, but not a float16 gradient: the backward pass does that.

    (``torch.library.custom_op`` would do it in fewer lines, and take 200 us longer a step.)

    Attributes:
        reference: the differentiable definition, with the op's arguments but ``with_gradient``. It serves
            ``create_graph=True`` too, where the gradient itself must be differentiable.
        schema: the arguments: the logits first, then "str reduction, bool with_gradient" last; if ``labelled`` the
            target is second, and "int ignore_index" comes before those.
        bound: of the op's inputs: the largest |d row's loss / d logit| that can be; see ``HALF_BOUND``.
        labelled: whether each row has a label.
        registered: the op in ``torch.ops``.
    """

    schema: str
    bound: Callable[..., float]
    labelled: bool = True
    registered: Callable[..., tuple[Tensor, Tensor]] = field(init=False)

    def __post_init__(self) -> None:
        _library.define(f"{self.name}({self.schema}) -> (Tensor loss, Tensor gradient)")
        self.registered = getattr(torch.ops.ltfast, self.name).default
        for key in ("CPU", "CUDA"):
            _library.impl(self.name, self._on_device, key)
        _library.impl(self.name, self._with_autograd, "Autograd")
        torch.library.register_fake(f"ltfast::{self.name}", _fake, lib=_library)

    def __call__(self, *inputs: Any) -> Tensor:
        """The loss, from the op's arguments but ``with_gradient``: a scalar, or (B,) for the reduction "none".

        In plain eager mode it goes past PyTorch's dispatcher, whose two round trips through Python take longer than a
        small batch.
        """
        logits = inputs[0]
        backend = choose(self.name, logits)
        if backend == "reference":
            return self.reference(*inputs)
        with_gradient = wants_gradient(logits)
        if torch.compiler.is_compiling() or not is_plain(logits):
            return self.registered(*inputs, with_gradient)[0]
        if with_gradient:
            return _StoredGradient.apply(logits, (*inputs[1:], True), self, backend, True)[0]
        return self.run(backend, (*inputs, False))[0]

    def run(self, backend: str, inputs: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
        """Call the kernel with the op's arguments."""
        refuse_tangents(self.name, inputs)
        logits, *others = inputs
        dtype = accumulator(logits.dtype)
        others = [_dense(x, dtype) if isinstance(x, Tensor) else x for x in others]
        kernel = getattr(self.kernels.of(backend, logits.device), self.name)
        with kernel_context(logits.device):
            return kernel(logits, *others, unit=self.unit(inputs))

    def unit(self, inputs: Sequence[Any]) -> float:
        """The factor with which a gradient is stored."""
        return HALF_BOUND / self.bound(*inputs) if inputs[0].dtype == torch.float16 else 1.0

    def divisor(self, inputs: Sequence[Any]) -> Tensor | int:
        """What the backward pass has to divide a stored gradient by for the mean."""
        logits, target, reduction = inputs[0], inputs[1], inputs[-2]
        if reduction != "mean" or logits.dtype != torch.float16:
            return 1
        if not self.labelled or target.dim() > 1:  # soft targets are not ignored
            return logits.shape[0]
        return (target.long() != inputs[-3]).sum().clamp(min=1)

    def _on_device(self, *inputs: Any) -> tuple[Tensor, Tensor]:
        """What PyTorch's dispatcher calls for tensors in memory."""
        return self.run(self.resolve(inputs[0].device), inputs)

    def _with_autograd(self, *inputs: Any) -> tuple[Tensor, Tensor]:
        """What PyTorch's dispatcher calls first of all."""
        if inputs[-1]:
            logits, *others = inputs
            return _StoredGradient.apply(logits, tuple(others), self, self.resolve(logits.device), is_plain(logits))
        with below_autograd():
            return self.registered(*inputs)


class _StoredGradient(torch.autograd.Function):
    """A fused loss whose gradient is wanted. The tensors beside the logits have no gradient, so they come in one tuple:
    PyTorch takes its time over each argument."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, others: tuple[Any, ...], op: FusedLoss, backend: str, plain: bool
    ) -> tuple[Tensor, Tensor]:
        if plain:
            loss, gradient = op.run(backend, (logits, *others))
        else:
            with below_autograd():
                loss, gradient = op.registered(logits, *others)
        ctx.op, ctx.backend = op, backend
        ctx.mark_non_differentiable(gradient)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(gradient, logits, *[x for x in others if isinstance(x, Tensor)])
        ctx.others = [None if isinstance(x, Tensor) else (x,) for x in others]
        return loss, gradient

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
        nothing = (None, None, None, None)
        if grad_loss is None:
            return None, *nothing
        gradient, logits, *tensors = ctx.saved_tensors
        remaining = iter(tensors)
        inputs = [logits, *(next(remaining) if x is None else x[0] for x in ctx.others)]
        reduction = inputs[-2]
        if torch.is_grad_enabled():  # create_graph=True
            again = ctx.op.reference(*inputs[:-1])
            (result,) = torch.autograd.grad(again, logits, grad_loss, create_graph=True)
            return result, *nothing
        unit, count = 1 / ctx.op.unit(inputs), ctx.op.divisor(inputs)
        factor = grad_loss[:, None] if reduction == "none" else grad_loss
        if isinstance(count, Tensor):
            factor = factor / count
        else:
            unit /= count
        # In place only where nobody needs the stored gradient again: not with retain_graph=True, not for batched
        # incoming gradients or ones with a forward-mode tangent, and not while a compiler traces with tensors of
        # its own (it fuses the product itself).
        if is_plain(gradient) and is_plain(factor) and not keeps_graph():
            scale_rows_(gradient, factor, unit, ctx.backend)
            return gradient, *nothing
        return (gradient.to(factor.dtype) * (factor * unit)).to(gradient.dtype), *nothing


def _fake(logits: Tensor, *inputs: Any) -> tuple[Tensor, Tensor]:
    """Shapes and dtypes, for compilers."""
    reduction, with_gradient = inputs[-2:]
    return empty_loss(logits, reduction), empty_gradient(logits, with_gradient)


def _dense(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Labels and class vectors as the kernels read them; the logits and soft targets bring strides and dtypes."""
    if x.dim() != 1:
        return x
    return x.to(dtype if x.is_floating_point() else torch.int64).contiguous()
