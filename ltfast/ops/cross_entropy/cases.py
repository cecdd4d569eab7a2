"""The cases of ``cross_entropy``."""

import itertools
from collections.abc import Iterator

from torch import Tensor

from ltfast.ops.core.bench import Bench
from ltfast.ops.core.cases import CLASSES, DTYPES, MANY_ROWS, ROWS, Example, OpCases, Sizes, labels_on_gpu, on_gpu
from ltfast.ops.core.tensors import accumulator
from ltfast.ops.cross_entropy import bench, cross_entropy
from ltfast.ops.cross_entropy.settings import CrossEntropySettings

# of the launches: soft targets, weights, label smoothing
KINDS = {
    "labels": (False, False, 0.0),
    "smoothed, weighted": (False, True, 0.1),
    "soft": (True, False, 0.0),
    "soft, weighted": (True, True, 0.0),
}


def example(sizes: Sizes) -> Example:
    bias = sizes.randn(sizes.classes)

    def function(x: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(x, labels, bias, label_smoothing=0.1)

    return Example(function, sizes.rand(sizes.rows, sizes.classes), sizes.labels())


def launches() -> Iterator[str]:
    from ltfast.ops.cross_entropy import triton

    batches = [(ROWS, classes) for classes in CLASSES] + [(MANY_ROWS, 8142)]
    for (name, dtype), (rows, classes), (kind, choices) in itertools.product(DTYPES.items(), batches, KINDS.items()):
        soft, weighted, smoothing = choices
        if weighted and soft and classes != 1000:
            continue  # one size of these is enough
        vector = on_gpu(classes, dtype=accumulator(dtype))
        target = on_gpu(rows, classes) if soft else labels_on_gpu(rows)
        logits = on_gpu(rows, classes, dtype=dtype)
        settings = CrossEntropySettings(smoothing, -100, "mean")
        triton.cross_entropy(logits, target, vector, vector if weighted else None, settings, True, 1.0)
        yield f"cross_entropy {name} {classes} {kind}{', large batch' if rows == MANY_ROWS else ''}"


CASES = OpCases(
    {"cross_entropy": example}, launches=launches, bench={"cross_entropy": Bench(bench.cases, bench.growth)}
)
