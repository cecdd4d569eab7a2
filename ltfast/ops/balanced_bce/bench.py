"""`balanced_bce`, forward and backward, with labels and with soft targets."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from ltfast.ops.balanced_bce import balanced_bce
from ltfast.ops.core.bench import LOGITS, Case, Growth, Work, backward, compilers, copy


def published(logits: Tensor, target: Tensor, bias: Tensor, smoothing: float = 0.1) -> Tensor:
    """LiVT's loss on labels or soft targets; bias is the log-odds of the class prior."""
    classes = logits.shape[1]
    if target.dim() == 1:
        target = F.one_hot(target, classes).to(logits.dtype) * (1 - smoothing) + smoothing / classes
    return classes * F.binary_cross_entropy_with_logits(logits + bias, target)


def case(device: torch.device, shape: str, rows: int, classes: int, dtype: torch.dtype, soft: bool = False) -> Case:
    def inputs() -> tuple[torch.Tensor, torch.Tensor]:
        logits = torch.randn(rows, classes, device=device).to(dtype).requires_grad_()
        if soft:
            return logits, (9 * torch.randn(rows, classes, device=device)).softmax(1).to(dtype)
        return logits, torch.randint(classes, (rows,), device=device)

    counts = torch.linspace(1000, 5, classes, dtype=torch.float64, device=device)
    log_odds = torch.logit(counts / counts.sum()).float()
    bias = log_odds.to(dtype)

    return Case(
        "balanced_bce",
        shape,
        f"{rows} x {classes}" + ", soft targets" * soft,
        dtype,
        # logits, gradient and soft targets; loss and sigmoid share an exponential, a logarithm can do for many factors
        Work(bytes=(2 + soft) * rows * classes * dtype.itemsize, exps=rows * classes),
        inputs,
        {
            "ltfast": backward(lambda: partial(balanced_bce, label_smoothing=0.0 if soft else 0.1), bias=log_odds),
            "eager": backward(lambda: published, bias=bias),
            **{name: backward(make, bias=bias) for name, make in compilers(published, device).items()},
            "copy": partial(copy, rows, classes, dtype=dtype, device=device),
        },
    )


def cases(device: torch.device) -> Iterator[Case]:
    for shape, (rows, classes) in LOGITS.items():
        yield case(device, shape, rows, classes, torch.float32)
    yield case(device, "imagenet-lt", *LOGITS["imagenet-lt"], torch.bfloat16)
    yield case(device, "imagenet-lt", *LOGITS["imagenet-lt"], torch.float32, soft=True)


def growth(device: torch.device) -> Iterator[Growth]:
    yield Growth(
        "balanced_bce",
        {"rows": 256, "classes": 1000},
        {"rows": (16, 64, 256, 1024, 4096), "classes": (10, 100, 1000, 10_000, 100_000)},
        lambda rows, classes: case(device, "growth", rows, classes, torch.float32),
    )
