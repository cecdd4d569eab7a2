r"""Sums of feature vectors by class: :math:`S_c = \sum_{i: y_i = c} z_i`, and how many there are.

Running class means, prototypes and supervised contrastive losses need these sums of a batch. Every sum is taken in the
order of the rows, so the result is bit-for-bit the same at every call. (``index_add_`` adds atomically on a GPU. A
product with a one-hot matrix, as in published code, stores N x C or even N x C x D values.)
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ltfast.ops.class_sums import reference
from ltfast.ops.core import checks
from ltfast.ops.core.dispatch import Kernels, Op
from ltfast.ops.core.tensors import accumulator, wants_gradient
from ltfast.ops.core.torch_internals import is_plain

__all__ = ["class_sums"]


def class_sums(features: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """The sum of the features of each class, and their number.

    Args:
        features: (N, D), float32, float64, bfloat16 or float16. Any strides. N may be 0.
        labels: (N,), integers in [0, C).
        num_classes: C, at least 1.

    Returns:
        The sums, (C, D), float32, or float64 for float64 features; zero for a class without features; differentiable in
        the features. The counts, (C,) int64.

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it. Labels out of range raise on the CPU; in
            Triton they belong to no class, and raise under ``LTFAST_CHECKS=1``.
    """
    checks.check_matrix(features, "features", "(number, width)", fewest_rows=0)
    checks.check_integer("num_classes", num_classes)
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}: expected at least 1")
    checks.check_labels(labels, features, "labels", classes=num_classes)
    if CLASS_SUMS.choose(features) == "reference":
        return reference.class_sums(features, labels, num_classes)
    if not torch.compiler.is_compiling() and is_plain(features) and not wants_gradient(features):
        return _run(features, labels, num_classes)  # the dispatcher would take longer than a small batch
    return class_sums_op(features, labels, num_classes)


def _native() -> ModuleType:
    from ltfast.ops.class_sums import native

    return native


def _triton() -> ModuleType:
    from ltfast.ops.class_sums import triton

    return triton


CLASS_SUMS = Op("class_sums", reference.class_sums, Kernels(_native, _triton))


@CLASS_SUMS.guarded
def _run(features: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    labels = labels.long().contiguous()
    if not len(features):
        return reference.class_sums(features, labels, num_classes)
    if features.stride(1) != 1:
        features = features.contiguous()
    device = features.device
    kernels = CLASS_SUMS.kernels.of(CLASS_SUMS.resolve(device), device)
    return kernels.class_sums(features, labels, num_classes)


class_sums_op = torch.library.custom_op("ltfast::class_sums", _run, mutates_args=())


@class_sums_op.register_fake
def _(features: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    sums = features.new_empty(num_classes, features.shape[1], dtype=accumulator(features.dtype))
    return sums, labels.new_empty(num_classes, dtype=torch.int64)


def _setup(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: tuple[Tensor, Tensor]) -> None:
    features, labels, ctx.num_classes = inputs
    ctx.dtype = features.dtype
    ctx.save_for_backward(labels)


def _backward(ctx: Any, grad_sums: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
    (labels,) = ctx.saved_tensors
    labels = labels.long()
    inside = (labels >= 0) & (labels < ctx.num_classes)
    rows = grad_sums[labels.clamp(0, ctx.num_classes - 1)]
    return torch.where(inside[:, None], rows, 0).to(ctx.dtype), None, None


class_sums_op.register_autograd(_backward, setup_context=_setup)
