"""What is measured: a step of an op on inputs of one size, by several implementations."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

Step = Callable[[Any], object]


@dataclass(frozen=True)
class Work:
    """What a step has to do at the least, whoever does it.

    Attributes:
        bytes: read and written, each input and output once.
        flops: of matrix products, two a multiply-add.
        exps: exponentials, logarithms and the like.
    """

    bytes: float
    flops: float = 0.0
    exps: float = 0.0


@dataclass(frozen=True)
class Case:
    """A step, and who does it.

    Attributes:
        op: the name of `--ops`.
        shape: one of `ltfast.benchmark.cases.SHAPES`.
        size: the dimensions in words, "256 x 1000".
        dtype: of the inputs.
        work: see `Work`.
        inputs: makes a set of inputs at random: a tree (tuples, lists, dicts) of tensors on the device. There are as
            many sets as it takes to leave the cache.
        implementations: name -> makes the step, which takes a set of inputs. The first is `ltfast`. Making it may raise
            `ModuleNotFoundError` (a peer that is not installed) or `Unavailable`.
    """

    op: str
    shape: str
    size: str
    dtype: torch.dtype
    work: Work
    inputs: Callable[[], Any]
    implementations: Mapping[str, Callable[[], Step]]

    @property
    def name(self) -> str:
        return f"{self.op} {self.size} {str(self.dtype).removeprefix('torch.')}"


@dataclass(frozen=True)
class Growth:
    """How an op grows.

    Attributes:
        op: the name of `--ops`.
        base: dimension -> its size where another one is varied.
        ranges: dimension -> its sizes, rising.
        case: of the dimensions' sizes, as keywords.
    """

    op: str
    base: Mapping[str, int]
    ranges: Mapping[str, Sequence[int]]
    case: Callable[..., Case] = field(repr=False)


class Unavailable(Exception):
    """An implementation that cannot run here; the message says why."""


def call(make: Callable[[], Callable[..., object]]) -> Callable[[], Step]:
    """Makes the step of a function of a set of inputs."""

    def start() -> Step:
        function = make()
        return lambda inputs: function(*inputs)

    return start


def backward(make: Callable[[], Callable[..., torch.Tensor]], **fixed: Any) -> Callable[[], Step]:
    """Makes the step of a loss: its gradient in the first input.

    Args:
        make: makes the loss, of a set of inputs.
        fixed: more arguments of the loss, the same at every step.
    """

    def start() -> Step:
        loss = make()
        return lambda inputs: torch.autograd.grad(loss(*inputs, **fixed), inputs[0])

    return start


def copy(*size: int, dtype: torch.dtype, device: torch.device) -> Step:
    """The least that a loss moves: the first input read, its gradient written."""
    gradient = torch.empty(size, dtype=dtype, device=device)
    return lambda inputs: gradient.copy_(inputs[0].detach())


def compilers(function: Callable[..., Any], device: torch.device) -> dict[str, Callable[[], Callable[..., Any]]]:
    """`torch.compile` as it is and, on a GPU, with kernels chosen by trying them: name -> makes the compiled function,
    whole, for the one shape it meets."""
    make = partial(torch.compile, function, fullgraph=True, dynamic=False)
    if device.type == "cpu":
        return {"torch.compile": make}
    return {
        "torch.compile": make,
        "torch.compile, max-autotune": partial(make, mode="max-autotune-no-cudagraphs"),
    }
