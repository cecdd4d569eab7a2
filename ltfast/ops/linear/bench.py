"""Classifier and loss in one, forward and backward, beside the two one after the other."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from ltfast.ops.agcl import agcl
from ltfast.ops.balanced_bce import balanced_bce
from ltfast.ops.core.bench import Bench, Case, Step, Work, compilers
from ltfast.ops.linear import linear_agcl, linear_balanced_bce

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


def agcl_cases(device: torch.device) -> Iterator[Case]:
    for shape in SIZES:
        losses: dict[str, Callable[[], Loss]] = {"ltfast": lambda: ours_agcl}
        if shape != "million":
            losses["linear, then ltfast"] = lambda: then_agcl
        yield case("linear_agcl", device, shape, losses, torch.float32)


BENCHES = {"linear_balanced_bce": Bench(balanced_bce_cases), "linear_agcl": Bench(agcl_cases)}
