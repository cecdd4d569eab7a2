"""The ops ``ltfast::linear_NAME``: a linear layer and the fused loss ``NAME`` of its outputs, which are never stored.

The forward pass takes a block of rows: a matrix product gives its logits, the loss's kernel their gradient, and two
more products the gradients of features and weight. So the backward pass has nothing left to compute: it multiplies
these gradients by the incoming one. With the reduction "none" each row has an incoming gradient of its own, which is
not known before, so the backward pass goes over the blocks again. (With ``create_graph=True`` it differentiates the
reference, whose logits are stored.)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ltfast.ops.core import dispatch
from ltfast.ops.core.fused_loss import FusedLoss
from ltfast.ops.core.settings import schema_of
from ltfast.ops.core.tensors import accumulator, wants_gradient
from ltfast.ops.core.torch_internals import is_plain, keeps_graph
from ltfast.ops.linear.blocks import Gradients, Layer, Wanted, blocks, factor

_LAYER = "Tensor features, Tensor layer_weight, Tensor? layer_bias"
_WANTED = "ScalarType dtype, bool of_features, bool of_weight, bool of_bias"
_GRADIENTS = "Tensor features_gradient, Tensor weight_gradient, Tensor bias_gradient"


@dataclass(eq=False)
class LinearLoss:
    """The op ``ltfast::linear_NAME``, registered with its shapes and its backward pass; a call returns its loss.

    Attributes:
        loss: the fused loss.
        cosine: whether its logits are the cosines of features and weight.
        name: of the public function.
    """

    loss: FusedLoss
    cosine: bool = False
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = f"linear_{self.loss.name}"
        _, _, others = self.loss.tensors.partition(", ")
        arguments = f"{_LAYER}, {others}, {schema_of(self.loss.settings)}"
        self.registered = torch.library.custom_op(
            f"ltfast::{self.name}",
            self._forward,
            mutates_args=(),
            schema=f"({arguments}, {_WANTED}) -> (Tensor loss, Tensor share, {_GRADIENTS})",
        )
        self.registered.register_fake(self._fake)
        self.registered.register_autograd(self._backward, setup_context=self._setup)
        # For the reduction "none"
        self._gradient_op = torch.library.custom_op(
            f"ltfast::{self.name}_gradient",
            self._gradient,
            mutates_args=(),
            schema=f"(Tensor incoming, {arguments}, str backend, {_WANTED}) -> ({_GRADIENTS})",
        )
        self._gradient_op.register_fake(self._fake_gradient)

    def __call__(self, features: Tensor, weight: Tensor, bias: Tensor | None, *inputs: Any) -> Tensor:
        """The loss: a scalar, or (B,) for the reduction "none".

        Args:
            features, weight, bias: (B, D), (C, D) and (C,) or None.
            inputs: the tensors of the loss beside the logits, then its settings.
        """
        if dispatch.choose(self.name, features, weight) == "reference":
            return self.reference(features, weight, bias, *inputs)
        *others, settings = inputs
        wanted = Wanted(*(x is not None and wants_gradient(x) for x in (features, weight, bias)))
        dtype = product_dtype(features)
        return self.registered(features, weight, bias, *others, *settings, dtype, *wanted)[0]

    def reference(self, features: Tensor, weight: Tensor, bias: Tensor | None, *inputs: Any) -> Tensor:
        """The definition, differentiable any number of times."""
        if self.cosine:
            features, weight = F.normalize(features, dim=1), F.normalize(weight, dim=1)
        return self.loss.reference(F.linear(features, weight, bias), *inputs)

    def _forward(self, *inputs: Any) -> tuple[Tensor, ...]:
        layer, settings, wanted = self._parsed(inputs)
        none = settings.reduction == "none"
        unit, share = _shares(layer, settings)
        losses = torch.empty(len(layer.features), dtype=accumulator(layer.dtype), device=layer.weight.device)
        backend = self.loss.resolve(layer.weight.device)
        with dispatch.kernel_context(layer.weight.device):
            weight = factor(layer.weight, layer)
            gradients = None if none or not any(wanted) else Gradients(layer, weight, wanted)
            for block in blocks(layer, weight):
                of_rows = _of_rows(settings, block.place.start)
                run = self.loss.run(backend, block.logits, block.others, of_rows, gradients is not None, unit=unit)
                losses[block.place], of_logits = run
                if gradients is not None:
                    gradients.add(block, of_logits)
            found = _empty(layer, _NONE) if gradients is None else gradients.tensors()
        loss = losses if none else losses.sum() * unit
        if share is None:
            return loss, loss.new_empty(0), *found
        return loss * share, share, *found

    def _gradient(self, incoming: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
        """The gradient of sum(incoming * losses), for the losses of the rows, (B,)."""
        *arguments, backend, dtype, of_features, of_weight, of_bias = inputs
        layer, settings, wanted = self._parsed([*arguments, dtype, of_features, of_weight, of_bias])
        with dispatch.kernel_context(layer.weight.device):
            weight = factor(layer.weight, layer)
            gradients = Gradients(layer, weight, wanted)
            for block in blocks(layer, weight):
                of_rows = _of_rows(settings, block.place.start)
                _, of_logits = self.loss.run(backend, block.logits, block.others, of_rows, True, unit=1.0)
                of_logits *= incoming[block.place, None]
                gradients.add(block, of_logits)
            return gradients.tensors()

    def _parsed(self, inputs: Sequence[Any]) -> tuple[Layer, Any, Wanted]:
        """The arguments of the op's schema."""
        features, weight, bias, *rest, dtype, of_features, of_weight, of_bias = inputs
        tensors = self.loss.tensors.count("Tensor") - 1
        settings = self.loss.settings(*rest[tensors:])
        layer = Layer(features, weight, bias, rest[0], rest[1:tensors], dtype, self.cosine)
        return layer, settings, Wanted(of_features, of_weight, of_bias)

    def _fake(self, *inputs: Any) -> tuple[Tensor, ...]:
        """Shapes and dtypes, for compilers."""
        layer, settings, wanted = self._parsed(inputs)
        none = settings.reduction == "none"
        loss = layer.features.new_empty(layer.features.shape[:1] if none else (), dtype=accumulator(layer.dtype))
        share = loss.new_empty(() if _is_shared_late(layer, settings) else (0,))
        return loss, share, *_empty(layer, _NONE if none else wanted)

    def _fake_gradient(self, incoming: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
        *arguments, _, dtype, of_features, of_weight, of_bias = inputs
        layer, _, wanted = self._parsed([*arguments, dtype, of_features, of_weight, of_bias])
        return _empty(layer, wanted)

    def _setup(self, ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        layer, settings, wanted = self._parsed(inputs)
        ctx.settings, ctx.wanted, ctx.dtype = settings, wanted, layer.dtype
        ctx.backend = self.loss.resolve(layer.weight.device)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(layer.features, layer.weight, layer.bias, layer.target, *layer.others, *output[1:])

    def _backward(self, ctx: Any, incoming: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        inputs: list[Any]
        *inputs, share, of_features, of_weight, of_bias = ctx.saved_tensors
        wanted, settings = ctx.wanted, ctx.settings
        arguments = len(inputs) + len(settings) + len(wanted) + 1
        if incoming is None:
            return (None,) * arguments
        if torch.is_grad_enabled():  # create_graph=True
            gradients = self._differentiable(ctx, inputs, incoming)
        elif settings.reduction == "none":
            dispatch.refuse_tangents(self.name, (incoming,))
            gradients = self._gradient_op(incoming, *inputs, *settings, ctx.backend, ctx.dtype, *wanted)
        else:
            # of no rows that count the share is infinite, and the gradient 0
            factor = incoming * torch.where(share.isfinite(), share, 0) if share.dim() == 0 else incoming
            gradients = tuple(_scaled(x, factor) for x in (of_features, of_weight, of_bias))
        found = [x.to(y.dtype) if z else None for x, y, z in zip(gradients, inputs, wanted, strict=False)]
        return *found, *(None,) * (arguments - len(found))

    def _differentiable(self, ctx: Any, inputs: Sequence[Tensor | None], incoming: Tensor) -> tuple[Tensor, ...]:
        """The gradients by autograd of the reference."""
        with torch.autocast(incoming.device.type, enabled=False):
            layer: list[Any] = [None if x is None else x.to(ctx.dtype) for x in inputs[:3]]
            again = self.reference(*layer, *inputs[3:], ctx.settings)
        chosen = [x for x, is_wanted in zip(inputs, ctx.wanted, strict=False) if x is not None and is_wanted]
        found = iter(torch.autograd.grad(again, chosen, incoming, create_graph=True))
        return tuple(next(found) if is_wanted else incoming for is_wanted in ctx.wanted)


def product_dtype(features: Tensor) -> torch.dtype:
    """The dtype in which ``F.linear`` would compute."""
    device = features.device.type
    if features.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return features.dtype


def _is_shared_late(layer: Layer, settings: Any) -> bool:
    """Whether the backward pass divides by the number of rows. On a GPU that number stays on the device, and float16
    gradients would underflow before a GradScaler can lift them."""
    return settings.reduction == "mean" and (layer.weight.device.type != "cpu" or layer.dtype == torch.float16)


def _shares(layer: Layer, settings: Any) -> tuple[float, Tensor | None]:
    """The weight of a row in the reduced loss, as a factor for the kernel and one for the backward pass."""
    if settings.reduction != "mean":
        return 1.0, None
    target = layer.target
    if target.dim() > 1:  # soft targets are not ignored
        counted = torch.full((), len(layer.features), device=layer.weight.device)
    else:
        counted = (target.long() != settings.ignore_index).sum()
    if _is_shared_late(layer, settings):
        return 1.0, 1 / counted.to(accumulator(layer.dtype))
    number = counted.item()
    return (1 / number if number else math.nan), None


def _of_rows(settings: Any, first: int) -> Any:
    """The settings for the losses of a block of rows."""
    changes: dict[str, Any] = {"reduction": "none"}
    if "first_row" in settings._fields:
        changes["first_row"] = first
    return settings._replace(**changes)


_NONE = Wanted(False, False, False)


def _empty(layer: Layer, wanted: Wanted) -> tuple[Tensor, ...]:
    """The gradients as the ops return them: those of weight and bias in the dtype of the arithmetic."""
    dtype = accumulator(layer.dtype)
    shapes = (layer.features.shape, layer.weight.shape, layer.weight.shape[:1])
    dtypes = (layer.features.dtype, dtype, dtype)
    return tuple(
        layer.features.new_empty(shape if is_wanted else (0,), dtype=kind if is_wanted else layer.dtype)
        for shape, kind, is_wanted in zip(shapes, dtypes, wanted, strict=True)
    )


def _scaled(gradient: Tensor, factor: Tensor) -> Tensor:
    """Their product: in place only where nobody needs the stored gradient again."""
    if not (is_plain(gradient) and is_plain(factor)) or keeps_graph():
        return (gradient * factor).to(gradient.dtype)
    if gradient.device.type == "cpu" and factor.item() == 1:
        return gradient
    return gradient.mul_(factor)
