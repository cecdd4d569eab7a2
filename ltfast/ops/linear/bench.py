"""Classifier and loss in one, forward and backward, beside the two one after the other."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ltfast.ops.agcl import agcl
from ltfast.ops.balanced_bce import balanced_bce
from ltfast.ops.core.bench import Bench, Case, Step, Unavailable, Work, compilers
from ltfast.ops.cross_entropy import cross_entropy
from ltfast.ops.linear import linear_agcl, linear_balanced_bce, linear_cross_entropy

SIZES = {
    "imagenet-lt": (256, 1000, 512),
    "inat18": (1024, 8142, 512),
    "large": (16384, 8142, 512),
    "million": (512, 1_000_000, 128),
}
# of the losses: (features, weight, bias, target, class vector) -> loss
Loss = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def ours_balanced_bce(x: Tensor, weight: Tensor, bias: Tensor, target: Tensor, vector: Tensor) -> Tensor:
    return linear_balanced_bce(x, weight, bias, target, vector)


def then_balanced_bce(x: Tensor, weight: Tensor, bias: Tensor, target: Tensor, vector: Tensor) -> Tensor:
    return balanced_bce(F.linear(x, weight, bias), target, vector)


def ours_agcl(x: Tensor, weight: Tensor, bias: Tensor, target: Tensor, vector: Tensor) -> Tensor:
    return linear_agcl(x, weight, target, vector)


def then_agcl(x: Tensor, weight: Tensor, bias: Tensor, target: Tensor, vector: Tensor) -> Tensor:
    return agcl(F.linear(F.normalize(x), F.normalize(weight)), target, vector)


def published_balanced_bce(x: Tensor, weight: Tensor, bias: Tensor, target: Tensor, vector: Tensor) -> Tensor:
    logits = F.linear(x, weight, bias)
    hot = F.one_hot(target, logits.shape[1]).to(logits.dtype)
    return logits.shape[1] * F.binary_cross_entropy_with_logits(logits + vector, hot)


def ours_cross_entropy(x: Tensor, weight: Tensor, bias: Tensor, target: Tensor, vector: Tensor) -> Tensor:
    return linear_cross_entropy(x, weight, bias, target, adjustment=vector)


def then_cross_entropy(x: Tensor, weight: Tensor, bias: Tensor, target: Tensor, vector: Tensor) -> Tensor:
    return cross_entropy(F.linear(x, weight, bias), target, vector)


def published_cross_entropy(x: Tensor, weight: Tensor, bias: Tensor, target: Tensor, vector: Tensor) -> Tensor:
    """Logit adjustment in plain PyTorch."""
    return F.cross_entropy(F.linear(x, weight, bias) + vector, target)


def by_pytorch() -> Loss:
    """PyTorch's own, without the logits; from 2.13 on."""
    function = getattr(F, "linear_cross_entropy", None)
    if function is None:
        raise Unavailable("this version of PyTorch has no linear_cross_entropy")
    return lambda x, weight, bias, target, vector: function(x, weight, target, linear_bias=bias + vector)


class Chunks(torch.autograd.Function):
    """Liger's algorithm in plain PyTorch (Hsu et al., "Liger Kernel: Efficient Triton Kernels for LLM Training",
    2024): as many chunks of rows as make a chunk of logits about as large as the features."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> Tensor:
        rows, (classes, width) = len(x), weight.shape
        step = 1 << (-(-rows // -(-classes // width)) - 1).bit_length()
        of_x, of_weight, of_bias = torch.empty_like(x), torch.zeros_like(weight), torch.zeros_like(bias)
        loss = x.new_zeros(())
        for start in range(0, rows, step):
            part, label = x[start : start + step], target[start : start + step, None]
            logits = torch.addmm(bias, part, weight.T)
            loss += (logits.logsumexp(1, keepdim=True) - logits.gather(1, label)).sum() / rows
            gradient = logits.softmax(1)
            gradient.scatter_add_(1, label, gradient.new_full((), -1.0).expand_as(label))
            gradient /= rows
            torch.mm(gradient, weight, out=of_x[start : start + step])
            of_weight.addmm_(gradient.T, part)
            of_bias += gradient.sum(0)
        ctx.save_for_backward(of_x, of_weight, of_bias)
        return loss

    @staticmethod
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
        return *(x * incoming for x in ctx.saved_tensors), None


def chunks(x: Tensor, weight: Tensor, bias: Tensor, target: Tensor, vector: Tensor) -> Tensor:
    return Chunks.apply(x, weight, bias + vector, target)


def step(make: Callable[[], Loss]) -> Callable[[], Step]:
    """Makes the step of a loss: its gradients in features, weight and, if it is used, bias."""

    def start() -> Step:
        loss = make()
        return lambda inputs: torch.autograd.grad(loss(*inputs), inputs[:3], allow_unused=True)

    return start


def case(op: str, device: torch.device, shape: str, losses: dict[str, Callable[[], Loss]], dtype: torch.dtype) -> Case:
    rows, classes, width = SIZES[shape]

    def inputs() -> tuple[Tensor, ...]:
        layer = [torch.randn(*size, device=device) for size in ((rows, width), (classes, width), (classes,))]
        layer[1] /= width**0.5
        target = torch.randint(classes, (rows,), device=device)
        return *(x.to(dtype).requires_grad_() for x in layer), target, torch.rand(classes, device=device) / 2

    return Case(
        op,
        shape,
        f"{rows} x {classes} x {width}",
        dtype,
        # features, weight and their gradients once; three products; an exponential for each logit
        Work(
            bytes=2 * (rows + classes) * width * dtype.itemsize,
            flops=3 * 2 * rows * classes * width,
            exps=rows * classes,
        ),
        inputs,
        {name: step(make) for name, make in losses.items()},
    )


def balanced_bce_cases(device: torch.device) -> Iterator[Case]:
    for shape in SIZES:
        losses: dict[str, Callable[[], Loss]] = {"ltfast": lambda: ours_balanced_bce}
        if shape != "million":
            losses |= {
                "linear, then ltfast": lambda: then_balanced_bce,
                "eager": lambda: published_balanced_bce,
                **compilers(published_balanced_bce, device),
            }
        yield case("linear_balanced_bce", device, shape, losses, torch.float32)


def cross_entropy_cases(device: torch.device) -> Iterator[Case]:
    for shape in SIZES:
        losses: dict[str, Callable[[], Loss]] = {"ltfast": lambda: ours_cross_entropy}
        if shape != "million":
            losses |= {
                "linear, then ltfast": lambda: then_cross_entropy,
                "eager": lambda: published_cross_entropy,
                **compilers(published_cross_entropy, device),
                "liger's chunks": lambda: chunks,
                "F.linear_cross_entropy": by_pytorch,
            }
        yield case("linear_cross_entropy", device, shape, losses, torch.float32)


def agcl_cases(device: torch.device) -> Iterator[Case]:
    for shape in SIZES:
        losses: dict[str, Callable[[], Loss]] = {"ltfast": lambda: ours_agcl}
        if shape != "million":
            losses["linear, then ltfast"] = lambda: then_agcl
        yield case("linear_agcl", device, shape, losses, torch.float32)


BENCHES = {
    "linear_cross_entropy": Bench(cross_entropy_cases),
    "linear_balanced_bce": Bench(balanced_bce_cases),
    "linear_agcl": Bench(agcl_cases),
}
