"""Measures the limits of the machine, with which the time of a step is compared."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from ltfast.ops.core.bench import Work


@dataclass(frozen=True)
class Ceilings:
    """Rates per second.

    Attributes:
        bytes: bytes read and written by a copy or an in-place product of arrays larger than every cache.
        flops: name of a dtype -> operations of a large matrix product, the best of several shapes.
        exps: float32 exponentials of values that stay in the cache.
    """

    bytes: float
    flops: Mapping[str, float]
    exps: float

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
    values = torch.rand(2**22 if gpu else 2**17, device=device)
    out = torch.empty_like(values)
    return Ceilings(
        # in place too, because a CPU also reads the memory that a copy overwrites
        bytes=2 * 4 * source.numel() / min(_seconds(partial(f, source), device) for f in (target.copy_, source.mul_)),
        flops=flops,
        exps=values.numel() / _seconds(lambda: torch.exp(values, out=out), device, calls=64),
    )


def _products(dtype: torch.dtype, device: torch.device) -> float:
    """The operations per second of matrix products."""
    size = 8192 if device.type == "cuda" else 1024
    rates = []
    for rows, inner in ((size, size), (2 * size, size), (size // 2, 16 * size)):
        left = torch.randn(rows, inner, device=device).to(dtype)
        rates.append(2 * rows * rows * inner / _seconds(partial(torch.mm, left, left.T), device))
    return max(rates)


def _seconds(call: Callable[[], object], device: torch.device, *, calls: int = 2, rounds: int = 5) -> float:
    """The time of one call, in the best of some rounds, because a ceiling is the rate of an undisturbed machine."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    wait()
    started = time.perf_counter()
    call()
    wait()
    if time.perf_counter() - started > 0.1:  # so long that one call is as good as an average
        calls, rounds = 1, 2
    best = float("inf")
    for _ in range(rounds):
        wait()
        started = time.perf_counter()
        for _ in range(calls):
            call()
        wait()
        best = min(best, (time.perf_counter() - started) / calls)
    return best
