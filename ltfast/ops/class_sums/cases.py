"""The cases of ``class_sums``."""

import itertools
from collections.abc import Iterator

from torch import Tensor

from ltfast.ops.class_sums import bench, class_sums
from ltfast.ops.core.bench import Bench
from ltfast.ops.core.cases import DTYPES, ROWS, Example, OpCases, Sizes, labels_on_gpu, on_gpu


def example(sizes: Sizes) -> Example:
    def function(x: Tensor, labels: Tensor) -> Tensor:
        return class_sums(x, labels, sizes.classes)[0].square().sum()

    return Example(function, sizes.rand(sizes.rows, sizes.width), sizes.labels())


def launches() -> Iterator[str]:
    from ltfast.ops.class_sums import triton

    for dtype, width in itertools.product(DTYPES, (128, 2048)):
        triton.class_sums(on_gpu(ROWS, width, dtype=DTYPES[dtype]), labels_on_gpu(), 1000)
        yield f"class_sums {dtype} {width}"


CASES = OpCases({"class_sums": example}, launches=launches, bench={"class_sums": Bench(bench.cases)})
