"""The cases of ``patch_roi_pool``."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ltfast.ops.core.bench import Bench
from ltfast.ops.core.cases import DTYPES, Example, OpCases, Sizes, on_gpu
from ltfast.ops.core.tensors import accumulator
from ltfast.ops.roi_pool import bench, patch_roi_pool
from ltfast.ops.roi_pool.settings import RoiPoolSettings


def example(sizes: Sizes) -> Example:
    boxes = torch.tensor([[[0.5, 0.2, 2.1, 3.3], [1.0, 1.0, 2.5, 2.0]]]).expand(sizes.rows, -1, -1)

    def function(x: Tensor, _: Tensor) -> Tensor:
        return patch_roi_pool(x, boxes).square().sum()

    return Example(function, sizes.rand(sizes.rows, 2, 3, sizes.width), sizes.labels())


def launches() -> Iterator[str]:
    from ltfast.ops.roi_pool import triton

    settings = RoiPoolSettings(1 / 32, 7, 0, True)
    for dtype, width in (("fp32", 7), ("fp32", 100), ("bf16", 7), ("fp16", 7), ("fp64", 7), ("fp64", 100)):
        features = on_gpu(8, 2048, width, width, dtype=DTYPES[dtype])
        boxes = on_gpu(8, 5, 4, dtype=accumulator(DTYPES[dtype]))
        for function in (triton.roi_pool, triton.roi_pool_backward):
            function(features, boxes, on_gpu(8, 5, 2048, dtype=DTYPES[dtype]), True, settings)
            yield f"{function.__name__} {dtype} {width}"


CASES = OpCases({"patch_roi_pool": example}, launches=launches, bench={"patch_roi_pool": Bench(bench.cases)})
