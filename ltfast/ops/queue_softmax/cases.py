"""The cases of ``queue_softmax``."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ltfast.ops.core.bench import Bench
from ltfast.ops.core.cases import DTYPES, ROWS, Example, OpCases, Sizes, labels_on_gpu, on_gpu
from ltfast.ops.queue_softmax import bench, queue_softmax


def example(sizes: Sizes) -> Example:
    keys = sizes.randn(sizes.classes + 2, sizes.width)

    def function(x: Tensor, labels: Tensor) -> Tensor:
        return queue_softmax(x, keys, exclude=labels)[0].sum()

    return Example(function, sizes.rand(sizes.rows, sizes.width), sizes.labels())


def key_example(sizes: Sizes) -> Example:
    queries = sizes.randn(sizes.rows, sizes.width)

    def function(x: Tensor, labels: Tensor) -> Tensor:
        return queue_softmax(queries, x, exclude=labels)[0].sum()

    return Example(function, sizes.rand(sizes.classes + 2, sizes.width), sizes.labels())


def launches() -> Iterator[str]:
    from ltfast.ops.queue_softmax import triton

    for dtype, width, exclude in (
        ("fp32", 128, False), ("bf16", 128, False), ("fp16", 128, True), ("fp64", 128, True), ("fp32", 40, True),
        ("bf16", 64, True), ("bf16", 128, True), ("bf16", 256, True), ("fp16", 256, False), ("fp32", 256, False),
        ("bf16", 512, True), ("fp16", 512, True), ("fp32", 512, True), ("bf16", 512, False), ("fp64", 512, False),
    ):  # fmt: skip
        queries, keys = (on_gpu(rows, width, dtype=DTYPES[dtype]) for rows in (ROWS, 65_536))
        valid, excluded = (None, labels_on_gpu()) if exclude else (labels_on_gpu(1), None)
        lse, _ = triton.queue_softmax(queries, keys, 0.07, valid, excluded)
        yield f"queue_softmax {dtype} {width} {'exclude' * exclude}"
        triton.key_gradient(queries, keys, 0.07, valid, excluded, lse, torch.empty_like(lse))
        yield f"queue_softmax key gradient {dtype} {width} {'exclude' * exclude}"


CASES = OpCases(
    {"queue_softmax": example, "queue_softmax, keys": key_example},
    launches=launches,
    bench={"queue_softmax": Bench(bench.cases, bench.growth)},
)
