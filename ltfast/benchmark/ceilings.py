"""What the machine can do, measured: the limits that a step's time is compared with."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from ltfast.ops.core.bench import Work


@dataclass(frozen=True)
class Ceilings:
    """Rates a second.

    Attributes:
        bytes: read and written by a copy, or a product in place, of arrays that no cache holds.
        flops: name of a dtype -> of a large matrix product, the best of some forms.
        exps: float32 exponentials of values that stay in the cache.
    """

    bytes: float
    flops: Mapping[str, float]
    exps: float

    def least_ms(self, work: Work, dtype: torch.dtype) -> tuple[float, str]:
        """The least time a step can take, and what limits it: memory, matrix or exp."""
        name = str(dtype).removeprefix("torch.")
        times = {
            "memory": work.bytes / self.bytes,
            "matrix": work.flops / self.flops.get(name, self.flops["float32"]),
            "exp": work.exps / self.exps,
        }
        limit = max(times, key=times.__getitem__)
        return 1e3 * times[limit], limit


def measure(device: torch.device) -> Ceilings:
    """Measure them, in some seconds."""
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
        # in place too: a CPU reads what it is about to overwrite
        bytes=2 * 4 * source.numel() / min(_seconds(partial(f, source), device) for f in (target.copy_, source.mul_)),
        flops=flops,
        exps=values.numel() / _seconds(lambda: torch.exp(values, out=out), device, calls=64),
    )


def _products(dtype: torch.dtype, device: torch.device) -> float:
    """Flops a second."""
    size = 8192 if device.type == "cuda" else 1024
    rates = []
    for rows, inner in ((size, size), (2 * size, size), (size // 2, 16 * size)):
        left = torch.randn(rows, inner, device=device).to(dtype)
        rates.append(2 * rows * rows * inner / _seconds(partial(torch.mm, left, left.T), device))
    return max(rates)


def _seconds(call: Callable[[], object], device: torch.device, *, calls: int = 2, rounds: int = 5) -> float:
    """Of one call, in the best of some rounds: a ceiling is what the machine reaches when nothing disturbs it."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    call()
    best = float("inf")
    for _ in range(rounds):
        wait()
        started = time.perf_counter()
        for _ in range(calls):
            call()
        wait()
        best = min(best, (time.perf_counter() - started) / calls)
    return best
