r"""What a share of the classes contributes to ``linear_agcl``, without the cosines of all its classes.

For a block of classes, a matrix product gives the cosines of all rows, and the op ``ltfast::agcl_share`` their
contribution. The backward pass computes the cosines again: the kernel gives their gradient G, and two products
:math:`dX \mathrel{+}= G W` and :math:`dW = G^\top X`. The blocks are of classes, not of rows, because that op takes a
first class of its noise, and no first row.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ltfast.ops.agcl import KERNELS, reference, run_share
from ltfast.ops.agcl.merge import merged_shares
from ltfast.ops.agcl.settings import AgclShareSettings
from ltfast.ops.core.dispatch import Op
from ltfast.ops.core.settings import schema_of
from ltfast.ops.core.tensors import accumulator
from ltfast.ops.linear.blocks import BUDGET, FEWEST

_TENSORS = "Tensor features, Tensor layer_weight, Tensor target, Tensor? class_noise, Tensor? seed"


def _reference(features: Tensor, weight: Tensor, *inputs: Any) -> Tensor:
    return reference.agcl_share(F.linear(features, weight), *inputs)


CLASS_PARALLEL_LINEAR_AGCL = Op("class_parallel_linear_agcl", _reference, KERNELS)


def block_classes(rows: int, classes: int, device: str) -> int:
    """Classes of a block: a multiple of 8, as the noise is drawn. With very many rows, as few as fast products need."""
    return min(classes, max(BUDGET[device] // max(rows, 1) // 8 * 8, FEWEST))


def linear_agcl_share(
    features: Tensor,
    weight: Tensor,
    target: Tensor,
    class_noise: Tensor | None,
    seed: Tensor | None,
    settings: AgclShareSettings,
) -> Tensor:
    """The contribution (B, 5) of the classes of ``weight``, float64; see the op ``ltfast::agcl_share``.

    Args:
        features: (B, D), of length 1.
        weight: (C_r, D), of length 1, of the same dtype.
        target: (B,), the labels' places in the share; outside [0, C_r), a label is in another share.
        class_noise, seed: (C_r,) and (1,), or None for no noise.
        settings: of the share.
    """
    if CLASS_PARALLEL_LINEAR_AGCL.choose(features, weight) == "reference":
        return _reference(features, weight, target, class_noise, seed, settings)
    return linear_agcl_share_op(features, weight, target, class_noise, seed, *settings)


def _blocks(
    backend: str,
    features: Tensor,
    weight: Tensor,
    target: Tensor,
    class_noise: Tensor | None,
    seed: Tensor | None,
    settings: AgclShareSettings,
) -> Iterator[tuple[slice, Callable[[Tensor, Tensor | None], Any]]]:
    """The blocks of classes: which, and ``run_share`` for their statistics and the incoming gradient. The memory of the
    cosines is used again."""
    rows, classes = len(features), len(weight)
    step = block_classes(rows, classes, weight.device.type)
    buffer = weight.new_empty(rows * step)
    for start in range(0, classes, step):
        place = slice(start, min(start + step, classes))
        cosines = buffer[: rows * (place.stop - start)].view(rows, place.stop - start)
        torch.mm(features, weight[place].T, out=cosines)
        noise = None if class_noise is None else class_noise[place]
        share = settings._replace(first=settings.first + start)
        yield place, partial(run_share, backend, cosines, target - start, noise, seed, share)


@CLASS_PARALLEL_LINEAR_AGCL.guarded
def _share(
    features: Tensor, weight: Tensor, target: Tensor, class_noise: Tensor | None, seed: Tensor | None, *settings: Any
) -> Tensor:
    share = AgclShareSettings(*settings)
    backend = CLASS_PARALLEL_LINEAR_AGCL.resolve(features.device)
    parts = torch.empty(0, len(features), 5, dtype=torch.float64, device=features.device)
    for _, run in _blocks(backend, features, weight, target, class_noise, seed, share):
        part = torch.empty(len(features), 5, dtype=torch.float64, device=features.device)
        run(part, None)
        parts = merged_shares(torch.cat([parts, part[None]]), share.scale, share.gamma_neg)[None]
    return parts[0]


@CLASS_PARALLEL_LINEAR_AGCL.guarded
def _share_gradient(
    features: Tensor,
    weight: Tensor,
    target: Tensor,
    class_noise: Tensor | None,
    seed: Tensor | None,
    statistics: Tensor,
    incoming: Tensor,
    backend: str,
    *settings: Any,
) -> tuple[Tensor, Tensor]:
    """The gradients of sum(incoming * statistics) in features and weight."""
    share = AgclShareSettings(*settings)
    of_features = torch.zeros(features.shape, dtype=accumulator(features.dtype), device=features.device)
    of_weight = torch.empty_like(weight, memory_format=torch.contiguous_format)
    incoming = incoming.contiguous()
    for place, run in _blocks(backend, features, weight, target, class_noise, seed, share):
        # the kernel takes the logits relative to the largest of all blocks, as it is in the statistics
        gradient = run(statistics, incoming)
        if of_features.dtype == gradient.dtype:
            of_features.addmm_(gradient, weight[place])
        else:
            of_features += gradient @ weight[place]
        torch.mm(gradient.T, features, out=of_weight[place])
    return of_features.to(features.dtype), of_weight


linear_agcl_share_op = torch.library.custom_op(
    "ltfast::linear_agcl_share",
    _share,
    mutates_args=(),
    schema=f"({_TENSORS}, {schema_of(AgclShareSettings)}) -> Tensor",
)
linear_agcl_share_gradient_op = torch.library.custom_op(
    "ltfast::linear_agcl_share_gradient",
    _share_gradient,
    mutates_args=(),
    schema=f"({_TENSORS}, Tensor statistics, Tensor incoming, str backend, {schema_of(AgclShareSettings)}) "
    "-> (Tensor, Tensor)",
)


@linear_agcl_share_op.register_fake
def _(features: Tensor, *_: Any) -> Tensor:
    return features.new_empty(len(features), 5, dtype=torch.float64)


@linear_agcl_share_gradient_op.register_fake
def _(features: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return features.new_empty(features.shape), weight.new_empty(weight.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.settings = *inputs[:5], AgclShareSettings(*inputs[5:])
    ctx.save_for_backward(*tensors, output)
    ctx.backend = CLASS_PARALLEL_LINEAR_AGCL.resolve(output.device)


def _backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, statistics = ctx.saved_tensors
    gradients: Any
    if torch.is_grad_enabled():  # create_graph=True
        again = _reference(*tensors, ctx.settings)
        chosen = [x for x in tensors[:2] if x.requires_grad]
        found = iter(torch.autograd.grad(again, chosen, incoming, create_graph=True))
        gradients = [next(found) if x.requires_grad else None for x in tensors[:2]]
    else:
        gradients = linear_agcl_share_gradient_op(*tensors, statistics, incoming, ctx.backend, *ctx.settings)
    return *gradients, *(None,) * (3 + len(ctx.settings))


linear_agcl_share_op.register_autograd(_backward, setup_context=_setup)
