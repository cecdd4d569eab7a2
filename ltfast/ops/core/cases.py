"""What every op offers to the tests and the benchmark, in its ``cases.py``.

``ltfast.ops.catalog`` has the list of ops. The tests of backends, transforms, autocast, thread counts, random inputs
and ahead-of-time compilation, and ``ltfast bench``, iterate over it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ltfast.ops.core.bench import Bench


@dataclass(frozen=True)
class Sizes:
    """The sizes of a random example."""

    rows: int = 3
    classes: int = 5
    width: int = 4
    dtype: torch.dtype = torch.float64

    def rand(self, *shape: int) -> Tensor:
        """Uniform numbers in [0.1, 1.1), of ``dtype``."""
        return (torch.rand(shape, dtype=torch.float64) + 0.1).to(self.dtype)

    def randn(self, *shape: int) -> Tensor:
        """Normal numbers, of ``dtype``."""
        return torch.randn(shape, dtype=torch.float64).to(self.dtype)

    def labels(self) -> Tensor:
        """(rows,), int64, in [0, classes)."""
        return torch.randint(self.classes, (self.rows,))


@dataclass(frozen=True)
class Example:
    """A call of an op on random numbers.

    Attributes:
        function: (x, labels) -> a scalar, differentiable in x. An op without labels ignores them.
        x: the tensor that gets a gradient.
        labels: (B,), int64.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    x: Tensor
    labels: Tensor


@dataclass(frozen=True)
class OpCases:
    """The cases of the functions of one folder of ``ltfast/ops/``.

    Attributes:
        examples: "name of the function" or "name, what else" -> makes a random example.
        in_place: names of functions that have no gradient, and so no example.
        launches: calls the launchers of the Triton kernels, so that every specialisation of a kernel is compiled; it
            yields a label after each call. The tensors are fake ones, from ``on_gpu``.
        bench: the names for ``ltfast bench --ops``, with what is measured of each.
    """

    examples: Mapping[str, Callable[[Sizes], Example]] = field(default_factory=dict)
    in_place: tuple[str, ...] = ()
    launches: Callable[[], Iterator[str]] | None = None
    bench: Mapping[str, Bench] = field(default_factory=dict)


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
CLASSES = (10, 1000, 8142, 100_000)  # of the launches: one block, and several
ROWS = 256
MANY_ROWS = 16384  # too many for a row's kernel to reduce their losses


def on_gpu(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor for a launch. Inside ``FakeTensorMode`` it takes no GPU."""
    return torch.empty(shape, dtype=dtype, device="cuda")


def labels_on_gpu(count: int = ROWS) -> Tensor:
    return on_gpu(count, dtype=torch.int64)
