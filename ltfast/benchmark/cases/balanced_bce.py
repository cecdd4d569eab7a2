"""`balanced_bce`, forward and backward, with labels and with soft targets."""

from collections.abc import Iterator
from functools import partial

import torch

from ltfast.benchmark.case import Case, Growth, Work, backward, compilers, copy
from ltfast.benchmark.cases import published
from ltfast.benchmark.cases.agcl import SIZES
from ltfast.losses import BalancedBCELoss


def case(device: torch.device, shape: str, rows: int, classes: int, dtype: torch.dtype, soft: bool = False) -> Case:
    def inputs() -> tuple[torch.Tensor, torch.Tensor]:
        logits = torch.randn(rows, classes, device=device).to(dtype).requires_grad_()
        if soft:
            return logits, (9 * torch.randn(rows, classes, device=device)).softmax(1).to(dtype)
        return logits, torch.randint(classes, (rows,), device=device)

    loss = BalancedBCELoss(torch.linspace(1000, 5, classes).round(), label_smoothing=0.1).to(device)
    bias = loss.bias.to(dtype)

    return Case(
        "balanced_bce",
        shape,
        f"{rows} x {classes}" + ", soft targets" * soft,
        dtype,
        # logits, gradient and soft targets; loss and sigmoid share an exponential, a logarithm can do for many factors
        Work(bytes=(2 + soft) * rows * classes * dtype.itemsize, exps=rows * classes),
        inputs,
        {
            "ltfast": backward(lambda: loss),
            "eager": backward(lambda: published.balanced_bce, bias=bias),
            **{name: backward(make, bias=bias) for name, make in compilers(published.balanced_bce, device).items()},
            "copy": partial(copy, rows, classes, dtype=dtype, device=device),
        },
    )


def cases(device: torch.device) -> Iterator[Case]:
    for shape, (rows, classes) in SIZES.items():
        yield case(device, shape, rows, classes, torch.float32)
    yield case(device, "imagenet-lt", *SIZES["imagenet-lt"], torch.bfloat16)
    yield case(device, "imagenet-lt", *SIZES["imagenet-lt"], torch.float32, soft=True)


def growth(device: torch.device) -> Iterator[Growth]:
    yield Growth(
        "balanced_bce",
        {"rows": 256, "classes": 1000},
        {"rows": (16, 64, 256, 1024, 4096), "classes": (10, 100, 1000, 10_000, 100_000)},
        lambda rows, classes: case(device, "growth", rows, classes, torch.float32),
    )
