"""The cases of ``balanced_bce``."""

import itertools
from collections.abc import Iterator

from torch import Tensor

from ltfast.ops.balanced_bce import balanced_bce, bench
from ltfast.ops.balanced_bce.settings import BalancedBceSettings
from ltfast.ops.core.bench import Bench
from ltfast.ops.core.cases import CLASSES, DTYPES, MANY_ROWS, ROWS, Example, OpCases, Sizes, labels_on_gpu, on_gpu
from ltfast.ops.core.tensors import accumulator


def example(sizes: Sizes) -> Example:
    bias = sizes.randn(sizes.classes)

    def function(x: Tensor, labels: Tensor) -> Tensor:
        return balanced_bce(x, labels, bias, label_smoothing=0.1)

    return Example(function, sizes.rand(sizes.rows, sizes.classes), sizes.labels())


def launches() -> Iterator[str]:
    from ltfast.ops.balanced_bce import triton

    settings = BalancedBceSettings(0.1, None, -100, "mean")
    for (name, dtype), classes, soft in itertools.product(DTYPES.items(), CLASSES, (False, True)):
        vector = on_gpu(classes, dtype=accumulator(dtype))
        target = on_gpu(ROWS, classes) if soft else labels_on_gpu()
        weight = vector if soft else None
        logits = on_gpu(ROWS, classes, dtype=dtype)
        triton.balanced_bce(logits, target, vector, weight, weight, settings, True, 1.0)
        yield f"balanced_bce {name} {classes} {'soft' if soft else 'labels'}"
    logits = on_gpu(MANY_ROWS, 1000)
    triton.balanced_bce(logits, labels_on_gpu(MANY_ROWS), on_gpu(1000), None, None, settings, True, 1.0)
    yield "balanced_bce fp32 1000 labels, large batch"


CASES = OpCases({"balanced_bce": example}, launches=launches, bench={"balanced_bce": Bench(bench.cases, bench.growth)})
