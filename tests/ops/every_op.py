"""Every op as a function of one tensor, for what all of them promise alike. Arithmetic is in float64."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ltfast import ops

ROWS, CLASSES, WIDTH = 3, 5, 4
LABELS = torch.tensor([0, 3, 4])


def _rand(*shape: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64) + 0.1


def _vmf() -> tuple[Tensor, Tensor]:
    return F.normalize(torch.randn(CLASSES, WIDTH, dtype=torch.float64)), _rand(CLASSES) * 20


def _agcl() -> Any:
    return lambda x, y=LABELS: ops.agcl(x, y, gamma_pos=0.5), _rand(ROWS, CLASSES)


def _balanced_bce() -> Any:
    bias = torch.randn(CLASSES, dtype=torch.float64)
    return lambda x, y=LABELS: ops.balanced_bce(x, y, bias, label_smoothing=0.1), _rand(ROWS, CLASSES)


def _queue_softmax() -> Any:
    keys = torch.randn(7, WIDTH, dtype=torch.float64)
    return lambda x, y=LABELS: ops.queue_softmax(x, keys, exclude=y)[0].sum(), _rand(ROWS, WIDTH)


def _queue_softmax_keys() -> Any:
    queries = torch.randn(ROWS, WIDTH, dtype=torch.float64)
    return lambda x, y=LABELS: ops.queue_softmax(queries, x, exclude=y)[0].sum(), _rand(7, WIDTH)


def _class_sums() -> Any:
    return lambda x, y=LABELS: ops.class_sums(x, y, CLASSES)[0].square().sum(), _rand(ROWS, WIDTH)


def _vmf_logits() -> Any:
    directions, kappa = _vmf()
    return lambda x, _=LABELS: ops.vmf_logits(x, directions, kappa).square().sum(), _rand(ROWS, WIDTH)


def _vmf_cross_entropy() -> Any:
    directions, kappa = _vmf()
    return lambda x, y=LABELS: ops.vmf_cross_entropy(x, y, directions, kappa), _rand(ROWS, WIDTH)


def _log_iv() -> Any:
    return lambda x, _=LABELS: ops.log_iv(1.5, x).square().sum(), _rand(ROWS, WIDTH)


def _bessel_ratio() -> Any:
    order = torch.tensor([0.0, 1.5, 7.0, 30.0], dtype=torch.float64)
    return lambda x, _=LABELS: ops.bessel_ratio(order, x).square().sum(), _rand(ROWS, WIDTH)


def _patch_roi_pool() -> Any:
    boxes = torch.tensor([[[0.5, 0.2, 2.1, 3.3], [1.0, 1.0, 2.5, 2.0]]])
    return lambda x, _=LABELS: ops.patch_roi_pool(x, boxes).square().sum(), _rand(1, 2, 3, 4)


def _class_parallel_agcl() -> Any:
    return lambda x, y=LABELS: ops.class_parallel_agcl(x, y, CLASSES), _rand(ROWS, CLASSES)


def _class_parallel_vmf_cross_entropy() -> Any:
    directions, kappa = _vmf()
    return (
        lambda x, y=LABELS: ops.class_parallel_vmf_cross_entropy(x, y, directions, kappa, CLASSES),
        _rand(ROWS, WIDTH),
    )


# Each gives a function of x and labels, with a scalar result, and an x; new numbers at each call.
EVERY_OP: dict[str, Callable[[], tuple[Callable[..., Tensor], Tensor]]] = {
    "agcl": _agcl,
    "balanced_bce": _balanced_bce,
    "bessel_ratio": _bessel_ratio,
    "class_parallel_agcl": _class_parallel_agcl,
    "class_parallel_vmf_cross_entropy": _class_parallel_vmf_cross_entropy,
    "class_sums": _class_sums,
    "log_iv": _log_iv,
    "patch_roi_pool": _patch_roi_pool,
    "queue_softmax": _queue_softmax,
    "queue_softmax, keys": _queue_softmax_keys,
    "vmf_cross_entropy": _vmf_cross_entropy,
    "vmf_logits": _vmf_logits,
}
IN_PLACE = ("apply_masks_", "importance_threshold", "taylor_importance_")  # without gradients


def exact_gradient(function: Callable[..., Tensor], x: Tensor, *labels: Tensor) -> Tensor:
    """By the ordinary backward pass."""
    x = x.detach().clone().requires_grad_()
    return torch.autograd.grad(function(x, *labels), x)[0]
