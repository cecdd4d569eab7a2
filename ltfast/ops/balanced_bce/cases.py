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

    batches = [(ROWS, classes) for classes in CLASSES] + [(MANY_ROWS, 8142)]
    kinds = ((False, False), (True, True), (False, True), (True, False))
    for (name, dtype), (rows, classes), (soft, weighted) in itertools.product(DTYPES.items(), batches, kinds):
        if soft != weighted and classes != 1000:
            continue  # one size of these is enough
        vector = on_gpu(classes, dtype=accumulator(dtype))
        target = on_gpu(rows, classes) if soft else labels_on_gpu(rows)
        weight = vector if weighted else None
        logits = on_gpu(rows, classes, dtype=dtype)
        settings = BalancedBceSettings(0.0 if soft else 0.1, None, -100, "mean")
        triton.balanced_bce(logits, target, vector, weight, weight, settings, True, 1.0)
        kind = f"{'soft' if soft else 'labels'}{'' if soft == weighted else ', weighted' if weighted else ', plain'}"
        yield f"balanced_bce {name} {classes} {kind}{', large batch' if rows == MANY_ROWS else ''}"
    settings = BalancedBceSettings(0.1, None, -100, "mean")
    triton.balanced_bce(on_gpu(ROWS, 1000), on_gpu(ROWS, 1000), on_gpu(1000), None, None, settings, True, 1.0)
    yield "balanced_bce fp32 1000 soft, smoothed"


CASES = OpCases({"balanced_bce": example}, launches=launches, bench={"balanced_bce": Bench(bench.cases, bench.growth)})
