"""The launches of ``scale_rows_``, which no user calls."""

import itertools
from collections.abc import Iterator

from ltfast.ops.core.cases import CLASSES, DTYPES, ROWS, OpCases, on_gpu
from ltfast.ops.core.tensors import accumulator


def launches() -> Iterator[str]:
    from ltfast.ops.core.scale_rows import triton

    for (name, dtype), classes, factors in itertools.product(DTYPES.items(), CLASSES, (ROWS, 1)):
        triton.scale_rows_(on_gpu(ROWS, classes, dtype=dtype), on_gpu(factors, dtype=accumulator(dtype)), 1.0)
        yield f"scale_rows {name} {classes}, {'a factor each' if factors > 1 else 'one factor'}"


CASES = OpCases(launches=launches)
