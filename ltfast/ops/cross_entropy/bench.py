"""`cross_entropy`, forward and backward, with labels and with soft targets."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from ltfast.ops.core.bench import LOGITS, Case, Growth, Work, backward, compilers, copy
from ltfast.ops.cross_entropy import cross_entropy


def plain(logits: Tensor, target: Tensor, bias: Tensor) -> Tensor:
    """PyTorch's cross-entropy of logits with the logarithm of the class prior added."""
    return F.cross_entropy(logits + bias, target)


def liger_cross_entropy() -> Callable[..., Tensor]:
    """Liger Kernel's, which adds no bias and takes labels only."""
    from liger_kernel.transformers.functional import liger_cross_entropy

    return lambda logits, target, bias: liger_cross_entropy(logits + bias, target)


def case(device: torch.device, shape: str, rows: int, classes: int, dtype: torch.dtype, soft: bool = False) -> Case:
    def inputs() -> tuple[Tensor, Tensor]:
        logits = torch.randn(rows, classes, device=device).to(dtype).requires_grad_()
        if soft:
            return logits, (9 * torch.randn(rows, classes, device=device)).softmax(1).to(dtype)
        return logits, torch.randint(classes, (rows,), device=device)

    counts = torch.linspace(1000, 5, classes, dtype=torch.float64, device=device)
    prior = (counts / counts.sum()).log().float()
    bias = prior.to(dtype)
    liger = {} if soft or device.type == "cpu" else {"liger cross_entropy": backward(liger_cross_entropy, bias=bias)}
    return Case(
        "cross_entropy",
        shape,
        f"{rows} x {classes}" + ", soft targets" * soft,
        dtype,
        Work(bytes=(2 + soft) * rows * classes * dtype.itemsize, exps=rows * classes),  # logits, gradient, soft targets
        inputs,
        {
            "ltfast": backward(lambda: cross_entropy, bias=prior),
            "eager": backward(lambda: plain, bias=bias),
            **{name: backward(make, bias=bias) for name, make in compilers(plain, device).items()},
            **liger,
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
        "cross_entropy",
        {"rows": 256, "classes": 1000},
        {"rows": (16, 64, 256, 1024, 4096), "classes": (10, 100, 1000, 10_000, 100_000)},
        lambda rows, classes: case(device, "growth", rows, classes, torch.float32),
    )
