"""The cases of ``log_iv`` and ``bessel_ratio``."""

import itertools
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from ltfast.ops.bessel import bench, bessel_ratio, log_iv
from ltfast.ops.core.bench import Bench
from ltfast.ops.core.cases import DTYPES, Example, OpCases, Sizes, on_gpu


def log_iv_example(sizes: Sizes) -> Example:
    def function(x: Tensor, _: Tensor) -> Tensor:
        return log_iv(1.5, x).square().sum()

    return Example(function, sizes.rand(sizes.rows, sizes.width), sizes.labels())


def bessel_ratio_example(sizes: Sizes) -> Example:
    order = torch.linspace(0, 30, sizes.width, dtype=torch.float64)

    def function(x: Tensor, _: Tensor) -> Tensor:
        return bessel_ratio(order, x).square().sum()

    return Example(function, sizes.rand(sizes.rows, sizes.width), sizes.labels())


def launches() -> Iterator[str]:
    from ltfast.ops.bessel import triton

    functions = (triton.log_iv, triton.bessel_ratio, triton.bessel_ratio_grad)
    for function, dtype in itertools.product(functions, ("fp32", "fp64")):
        function(on_gpu(1, dtype=torch.float64), on_gpu(1000, dtype=DTYPES[dtype]))
        yield f"{function.__name__} {dtype}"


CASES = OpCases(
    {"log_iv": log_iv_example, "bessel_ratio": bessel_ratio_example},
    launches=launches,
    bench={op: Bench(partial(bench.cases, op)) for op in bench.FUNCTIONS},
)
