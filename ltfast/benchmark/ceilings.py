"""Measures the limits of the machine, with which the time of a step is compared."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ltfast.benchmark.neighbours import is_much
from ltfast.ops.core import backends
from ltfast.ops.core.bench import Work


@dataclass(frozen=True)
class Ceilings:
    """Rates per second.

    Attributes:
        bytes: bytes read and written by a copy or an in-place product of arrays larger than every cache.
        flops: name of a dtype -> operations of a large matrix product, the best of several shapes.
        exps: float32 exponentials. On a CPU, PyTorch's, of values that stay in the cache. On a GPU, the rate of the
            special-function units; without Triton, PyTorch's, which starting kernels and the cache limit to less.
        others: the share of the cores that other processes used meanwhile; None if the system does not tell.
    """

    bytes: float
    flops: Mapping[str, float]
    exps: float
    others: float | None = None

    @property
    def disturbed(self) -> bool:
        """Whether other processes used the cores, so that the machine may be faster than this."""
        return is_much(self.others)

    def best(self, again: "Ceilings") -> "Ceilings":
        """The larger rate of each kind; they were measured with less disturbance `again`."""
        flops = {name: max(rate, again.flops[name]) for name, rate in self.flops.items()}
        return Ceilings(max(self.bytes, again.bytes), flops, max(self.exps, again.exps), again.others)

    def share(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """What the limits say of a measured row: the least time, the limit that sets it, and the share of the time."""
        work = Work(row["bytes"], row["flops"], row["exps"])
        least, limit = self.least_ms(work, getattr(torch, row["dtype"]))
        return {"least_ms": least, "limit": limit, "share": least / row["median_ms"]}

    def least_ms(self, work: Work, dtype: torch.dtype) -> tuple[float, str]:
        """The least time of a step in ms, and the limit that sets it: memory, matrix or exp."""
        name = str(dtype).removeprefix("torch.")
        times = {
            "memory": work.bytes / self.bytes,
            "matrix": work.flops / self.flops.get(name, self.flops["float32"]),
            "exp": work.exps / self.exps,
        }
        limit = max(times, key=times.__getitem__)
        return 1e3 * times[limit], limit


def measure(device: torch.device) -> Ceilings:
    """Measure the ceilings, which takes some seconds."""
    gpu = device.type == "cuda"
    source = torch.ones(2**28 if gpu else 2**25, device=device)
    target = torch.empty_like(source)
    flops = {
        str(dtype).removeprefix("torch."): _products(dtype, device)
        for dtype in (torch.float32, torch.bfloat16, torch.float16 if gpu else torch.float64)
    }
    if gpu:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        flops["tf32"] = _products(torch.float32, device)
        torch.set_float32_matmul_precision(before)
    return Ceilings(
        # in place too, because a CPU also reads the memory that a copy overwrites
        bytes=2 * 4 * source.numel() / min(_seconds(partial(f, source), device) for f in (target.copy_, source.mul_)),
        flops=flops,
        exps=_exps(device),
    )


def _exps(device: torch.device) -> float:
    """Exponentials per second. A GPU's special-function units are so fast that `torch.exp` measures something else: the
    memory, or, with values that fit into the cache, the start of its kernel and the cache. A kernel that takes many
    exponentials of each value it loads measures the units."""
    if device.type == "cuda" and backends.why_not("triton", device) is None:
        from ltfast.benchmark.exponentials import ROUNDS, exponentials

        values = torch.rand(2**24, device=device)  # a millisecond
        return ROUNDS * values.numel() / _seconds(partial(exponentials, values), device)
    values = torch.rand(2**22 if device.type == "cuda" else 2**17, device=device)
    out = torch.empty_like(values)
    return values.numel() / _seconds(lambda: torch.exp(values, out=out), device)


def _products(dtype: torch.dtype, device: torch.device) -> float:
    """The operations per second of matrix products."""
    size = 8192 if device.type == "cuda" else 1024
    rates = []
    for rows, inner in ((size, size), (2 * size, size), (size // 2, 16 * size)):
        left = torch.randn(rows, inner, device=device).to(dtype)
        rates.append(2 * rows * rows * inner / _seconds(partial(torch.mm, left, left.T), device))
    return max(rates)


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    """The time of one call, in the best of some rounds, because a ceiling is the rate of an undisturbed machine. A
    round has so many calls that the wait for a GPU does not count."""

    def timed(calls: int) -> float:
        started = time.perf_counter()
        for _ in range(calls):
            call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - started) / calls

    timed(1)  # loads the library
    once = timed(1)
    calls = max(1, min(64, round(0.02 / once)))
    return min(timed(calls) for _ in range(2 if once > 0.1 else 5))
