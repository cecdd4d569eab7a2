"""What `ltfast bench` measures: a step of an op on inputs of one size, by several implementations."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

Step = Callable[[Any], object]

LOGITS = {
    "small": (256, 10),
    "imagenet-lt": (256, 1000),
    "inat18": (1024, 8142),
    "large": (16384, 8142),
    "million": (32, 1_000_000),
}
"""Rows and classes of the losses over a matrix of logits, by shape."""


@dataclass(frozen=True)
class Work:
    """The least that a step has to do, whatever the implementation.

    Attributes:
        bytes: bytes read and written, with each input and output once.
        flops: floating-point operations of matrix products, two for a multiply-add.
        exps: exponentials, logarithms and similar functions.
    """

    bytes: float
    flops: float = 0.0
    exps: float = 0.0


@dataclass(frozen=True)
class Case:
    """A step on inputs of one size, and its implementations.

    Attributes:
        op: the name for `--ops`.
        shape: one of `ltfast.benchmark.cases.SHAPES`.
        size: the dimensions in words, "256 x 1000".
        dtype: the dtype of the inputs.
        work: see `Work`.
        inputs: makes a random set of inputs: a tree (tuples, lists, dicts) of tensors on the device. The bench makes
            as many sets as exceed the cache.
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

    def with_peers(self, names: Collection[str]) -> "Case":
        """The case with ltfast and these of its other implementations."""
        kept = {name: make for name, make in self.implementations.items() if name in ("ltfast", *names)}
        return replace(self, implementations=kept)


@dataclass(frozen=True)
class Growth:
    """How the time of an op grows with each dimension.

    Attributes:
        op: the name for `--ops`.
        base: dimension -> its size while another one is varied.
        ranges: dimension -> its sizes, rising.
        case: makes the case from the sizes of the dimensions, as keywords.
    """

    op: str
    base: Mapping[str, int]
    ranges: Mapping[str, Sequence[int]]
    case: Callable[..., Case] = field(repr=False)


@dataclass(frozen=True)
class Bench:
    """All that is measured of an op.

    Attributes:
        cases: device -> its cases.
        growth: device -> what is shown of its growth.
    """

    cases: Callable[[torch.device], Iterator[Case]]
    growth: Callable[[torch.device], Iterator[Growth]] | None = None


class Unavailable(Exception):
    """An implementation cannot run here; the message says why."""


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
