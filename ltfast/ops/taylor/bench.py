"""Importance, threshold and masks of whole models, beside PyTorch's loops over their tensors."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torchvision
from torch import Tensor

from ltfast.ops.core import backends
from ltfast.ops.core.bench import Case, Growth, Unavailable, Work, call, compilers
from ltfast.ops.core.torch_internals import foreach_add_squares, foreach_copy
from ltfast.ops.taylor import apply_masks_, importance_threshold, reference, taylor_importance_

FRACTION = 0.3

Shapes = Sequence[tuple[int, ...]]
Function = Callable[..., object]
Make = Callable[..., Case]


def resnet50() -> Shapes:
    with torch.device("meta"):
        return [tuple(parameter.shape) for parameter in torchvision.models.resnet50().parameters()]


def equal_tensors(parameters: int) -> Shapes:
    return [(parameters // 64,)] * 64


def elements(shapes: Shapes) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes)


def tensors(shapes: Shapes, device: torch.device) -> list[Tensor]:
    return [torch.randn(shape, device=device) for shape in shapes]


def in_cuda(function: Function) -> Function:
    """The kernels in CUDA C++ beside the default, which is Triton's."""
    if reason := backends.why_not("native", torch.device("cuda"), in_cuda=True):
        raise Unavailable(reason)

    def call(*inputs: Any) -> object:
        with backends.backend("native"):
            return function(*inputs)

    return call


def on_gpu(ours: Function, plain: Function, device: torch.device) -> dict[str, Callable[[], Function]]:
    """On a CPU `torch.compile` takes half a minute for the tensors of a ResNet-50."""
    if device.type == "cpu":
        return {}
    return {"ltfast, CUDA C++": partial(in_cuda, ours), **compilers(plain, device)}


def case(
    op: str,
    shape: str,
    size: str,
    shapes: Shapes,
    moved: int,
    inputs: Callable[[], tuple[list[Tensor], ...]],
    makes: Mapping[str, Callable[[], Function]],
) -> Case:
    """
    Args:
        moved: bytes a parameter.
        makes: name -> makes the function of a set of inputs.
    """
    steps = {name: call(make) for name, make in makes.items()}
    return Case(op, shape, size, torch.float32, Work(bytes=moved * elements(shapes)), inputs, steps)


def importance(device: torch.device, shape: str, size: str, shapes: Shapes) -> Case:
    def inputs() -> tuple[list[Tensor], ...]:
        return tensors(shapes, device), tensors(shapes, device), tensors(shapes, device)

    def copy(accumulators: list[Tensor], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        """As many bytes: two tensors read, two written."""
        foreach_copy(accumulators, parameters)
        foreach_copy(gradients, parameters)

    plain = reference.taylor_importance_
    makes: dict[str, Callable[[], Function]] = {
        "ltfast": lambda: taylor_importance_,
        "eager": lambda: plain,
        "foreach": lambda: foreach_add_squares,
        "copy": lambda: copy,
        **on_gpu(taylor_importance_, plain, device),
    }
    return case("taylor_importance_", shape, size, shapes, 16, inputs, makes)


def threshold(device: torch.device, shape: str, size: str, shapes: Shapes) -> Case:
    k = max(round(FRACTION * elements(shapes)), 1)

    def inputs() -> tuple[list[Tensor]]:
        return ([x.pow(4) for x in tensors(shapes, device)],)  # of many magnitudes, as importances are

    def kthvalue(values: list[Tensor]) -> Tensor:
        return torch.cat([x.flatten() for x in values]).kthvalue(k).values

    def sort(values: list[Tensor]) -> Tensor:
        return torch.cat([x.flatten() for x in values]).sort().values[k - 1]

    makes: dict[str, Callable[[], Function]] = {
        "ltfast": lambda: partial(importance_threshold, fraction=FRACTION),
        "cat, kthvalue": lambda: kthvalue,
    }
    if device.type == "cuda":  # seconds on a CPU
        makes["cat, sort"] = lambda: sort
    return case("importance_threshold", shape, size, shapes, 4, inputs, makes)


def zero(device: torch.device, shape: str, size: str, shapes: Shapes) -> Case:
    def inputs() -> tuple[list[Tensor], list[Tensor]]:
        return tensors(shapes, device), [x > 0.5 for x in tensors(shapes, device)]

    def plain(tensors: list[Tensor], masks: list[Tensor]) -> None:
        for tensor, mask in zip(tensors, masks, strict=True):
            tensor.masked_fill_(mask, 0)

    makes: dict[str, Callable[[], Function]] = {
        "ltfast": lambda: apply_masks_,
        "eager": lambda: plain,
        **on_gpu(apply_masks_, plain, device),
    }
    return case("apply_masks_", shape, f"{size}, zero", shapes, 9, inputs, makes)


def values(device: torch.device, shape: str, size: str, shapes: Shapes) -> Case:
    def inputs() -> tuple[list[Tensor], ...]:
        return tensors(shapes, device), [x > 0.5 for x in tensors(shapes, device)], tensors(shapes, device)

    plain = reference.apply_masks_
    makes: dict[str, Callable[[], Function]] = {
        "ltfast": lambda: apply_masks_,
        "eager": lambda: plain,
        **on_gpu(apply_masks_, plain, device),
    }
    return case("apply_masks_", shape, f"{size}, values", shapes, 13, inputs, makes)


def cases(makes: Sequence[Make], device: torch.device) -> Iterator[Case]:
    models = {
        "imagenet-lt": ("ResNet-50", resnet50()),
        "large": ("300 M parameters", [(1024, 1024)] * 240 + [(4096, 1024)] * 12),
    }
    for make in makes:
        for shape, (size, shapes) in models.items():
            yield make(device, shape, size, shapes)


def growth(op: str, make: Make, device: torch.device) -> Iterator[Growth]:
    yield Growth(
        op,
        {"parameters": 2**22},
        {"parameters": [2**n for n in range(18, 25, 2)]},
        lambda parameters: make(device, "growth", f"{parameters} parameters", equal_tensors(parameters)),
    )
