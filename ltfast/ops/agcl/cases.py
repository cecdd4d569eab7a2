"""The cases of ``agcl``."""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from ltfast.ops.agcl import agcl, bench
from ltfast.ops.agcl.settings import AgclSettings, AgclShareSettings
from ltfast.ops.core.bench import Bench
from ltfast.ops.core.cases import CLASSES, DTYPES, MANY_ROWS, ROWS, Example, OpCases, Sizes, labels_on_gpu, on_gpu
from ltfast.ops.core.tensors import accumulator


def example(sizes: Sizes) -> Example:
    def function(x: Tensor, labels: Tensor) -> Tensor:
        return agcl(x, labels, gamma_pos=0.5)

    return Example(function, sizes.rand(sizes.rows, sizes.classes), sizes.labels())


def launches() -> Iterator[str]:
    from ltfast.ops.agcl import triton

    seed, seed_on_gpu = torch.tensor([3]), labels_on_gpu(1)
    for (name, dtype), classes in itertools.product(DTYPES.items(), CLASSES):
        logits, noise = on_gpu(ROWS, classes, dtype=dtype), on_gpu(classes, dtype=accumulator(dtype))
        for gammas in ((0.0, 4.0), (0.5, 8.0), (0.5, 1.5)) if name == "fp32" else ((0.5, 4.0),):
            settings = AgclSettings(20.0, 0.1, 1.0, 0.5, *gammas, -100, "mean")
            triton.agcl(logits, labels_on_gpu(), noise, None, seed, settings, True, 1.0)
            yield f"agcl {name} {classes} {gammas[0]} {gammas[1]}"
        settings = AgclSettings(20.0, 0.1, 1.0, 0.5, 0.0, 4.0, -100, "mean")
        triton.agcl(logits, labels_on_gpu(), None, None, None, settings, True, 1.0)
        yield f"agcl {name} {classes} without noise"
        triton.agcl(logits, labels_on_gpu(), noise, noise, seed, settings, True, 1.0)
        yield f"agcl {name} {classes} weighted"
        if classes == CLASSES[-1]:
            for incoming in (None, on_gpu(3, ROWS, dtype=torch.float64)):
                statistics = on_gpu(ROWS, 8, dtype=torch.float64)
                share = AgclShareSettings(1000, 20.0, 0.1, 1.5)
                triton.agcl_share(logits, labels_on_gpu(), noise, seed_on_gpu, share, statistics, incoming)
                yield f"agcl_share {name} {'gradient' if incoming is not None else ''}"
    triton.agcl(on_gpu(ROWS, 8142), labels_on_gpu(), on_gpu(8142), None, seed_on_gpu, settings, True, 1.0)
    yield "agcl fp32 8142 in a CUDA graph"
    for noisy in (True, False):
        many = on_gpu(MANY_ROWS, 8142), labels_on_gpu(MANY_ROWS)
        triton.agcl(*many, on_gpu(8142) if noisy else None, None, seed if noisy else None, settings, True, 1.0)
        yield f"agcl fp32 8142{'' if noisy else ' without noise'}, large batch"


CASES = OpCases({"agcl": example}, launches=launches, bench={"agcl": Bench(bench.cases, bench.growth)})
