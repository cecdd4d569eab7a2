"""The cases of the functions over all tensors of a model."""

import itertools
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from ltfast.ops.core.bench import Bench
from ltfast.ops.core.cases import DTYPES, OpCases
from ltfast.ops.taylor import bench


def launches() -> Iterator[str]:
    """These launchers read the addresses of their tensors, so the tensors are real ones."""
    from ltfast.ops.taylor import triton

    def tensors(dtype: torch.dtype, first: int = 0) -> list[Tensor]:
        return [torch.empty(5000, dtype=dtype)[first:]]

    kinds = (("fp32", "fp32", "fp32"), ("fp32", "bf16", "fp16"), ("fp64", "fp64", "fp64"))
    for (e, w, g), first in itertools.product(kinds, (0, 1)):
        triton.taylor_importance_(*(tensors(DTYPES[name], first) for name in (e, w, g)))
        yield f"taylor_importance_ {e} {w} {g} {'unaligned' * first}"
    integers = (torch.uint8, torch.float16, torch.float32, torch.float64)
    for dtype, with_values in itertools.product(integers, (True, False)):
        values = [tensors(dtype)] if with_values else []
        triton.apply_masks_(tensors(dtype), tensors(torch.bool), *values)
        yield f"apply_masks_ {dtype.itemsize} bytes {'values' * with_values}"
    for name, masked in itertools.product(("fp32", "fp64"), (True, False)):
        triton.importance_threshold(0.5, tensors(DTYPES[name]), *([tensors(torch.bool)] if masked else []))
        yield f"importance_threshold {name} {'masked' * masked}"


def _bench(op: str, *makes: bench.Make) -> Bench:
    return Bench(partial(bench.cases, makes), partial(bench.growth, op, makes[0]))


CASES = OpCases(
    in_place=("taylor_importance_", "importance_threshold", "apply_masks_"),
    launches=launches,
    bench={
        "taylor_importance_": _bench("taylor_importance_", bench.importance),
        "importance_threshold": _bench("importance_threshold", bench.threshold),
        "apply_masks_": Bench(partial(bench.cases, (bench.zero, bench.values))),
    },
)
