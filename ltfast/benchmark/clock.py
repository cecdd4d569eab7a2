"""Measures the time, memory and kernel launches of a step."""

import ctypes
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ltfast.benchmark.gpu_clock import GpuClock
from ltfast.ops.core.torch_internals import leaves

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Timing:
    """The times of a step.

    Attributes:
        first_ms: the wall time of the first call, which includes compilation.
        q1_ms, median_ms, q3_ms: the quartiles of the later calls; on a GPU, of the time of the GPU.
        rounds: the number of samples; on a GPU, each is the mean of many calls.
        host_ms: the median wall time until a call returns; None on a CPU.
        captured: whether the calls were timed as a CUDA graph; None on a CPU.
    """

    first_ms: float
    q1_ms: float
    median_ms: float
    q3_ms: float
    rounds: int
    host_ms: float | None = None
    captured: bool | None = None


class Stopwatch:
    """Times calls of one step, with each set of inputs in turn.

    Args:
        step: takes a set of inputs.
        inputs: the sets.
        device: a CPU is timed with its clock, a GPU with `GpuClock`.
        capture: see `GpuClock`.
    """

    def __init__(
        self, step: Callable[[Any], object], inputs: Sequence[Any], device: torch.device, *, capture: bool = True
    ) -> None:
        self.step, self.inputs = step, inputs
        self.samples: list[float] = []
        self.hosts: list[float] = []
        started = time.perf_counter()
        step(inputs[0])
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self.first_ms = 1e3 * (time.perf_counter() - started)
        self.gpu = GpuClock(step, inputs, capture=capture) if device.type == "cuda" else None

    def run(self, seconds: float, rounds: int) -> None:
        """Time calls for this long, and at least `rounds` samples. Other code may have emptied a CPU's caches, so a
        call of a quick step is made first and not timed."""
        if self.gpu is None and (len(self.samples) == 0 or self.samples[-1] < 50):
            self.step(self.inputs[-1])
        until = time.perf_counter() + seconds
        done = 0
        while done < rounds or time.perf_counter() < until:
            if self.gpu is not None:
                self.hosts.append(self.gpu.host())
            self.samples.append(self._one())
            done += 1

    def timing(self) -> Timing:
        """The timing of all samples.

        Raises:
            ValueError: there are fewer than two samples.
        """
        if len(self.samples) < 2:
            raise ValueError(f"samples: expected at least 2, got {len(self.samples)}")
        q1, median, q3 = statistics.quantiles(self.samples, n=4, method="inclusive")
        timing = Timing(self.first_ms, q1, median, q3, len(self.samples))
        if self.gpu is None:
            return timing
        return replace(timing, host_ms=statistics.median(self.hosts), captured=self.gpu.graph is not None)

    def _one(self) -> float:
        if self.gpu is not None:
            return self.gpu.sample()
        inputs = self.inputs[len(self.samples) % len(self.inputs)]
        started = time.perf_counter()
        self.step(inputs)
        return 1e3 * (time.perf_counter() - started)


def cold_sets(make: Callable[[], Any], device: torch.device, most: int = 16) -> list[Any]:
    """Sets of inputs, enough of them that a set has left the last-level cache before it is used again."""
    sets = [make()]
    size = sum(x.numel() * x.element_size() for x in leaves(sets[0]) if isinstance(x, torch.Tensor))
    number = min(most, 1 + -(-2 * cache_bytes(device) // max(size, 1)))
    return sets + [make() for _ in range(number - 1)]


def cache_bytes(device: torch.device) -> int:
    """The size of the last-level cache in bytes; 32 MiB if the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    units = {"K": 2**10, "M": 2**20}
    texts = [file.read_text().strip() for file in sizes]
    return max((int(text[:-1]) * units[text[-1]] for text in texts), default=2**25)


def peak_memory(call: Callable[[], object], device: torch.device) -> float | None:
    """The peak memory of a call in MiB, beyond what is allocated already; None if the system does not tell."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    if sys.platform != "linux":
        return None
    ctypes.CDLL(None).malloc_trim(0)  # memory that the allocator keeps would hide as much of this call's
    try:
        _RESET.write_text("5")  # resets the peak
    except OSError:
        return None
    before = _resident("VmRSS")
    call()
    return max(_resident("VmHWM") - before, 0) / 2**10


def launches(call: Callable[[], object], device: torch.device) -> int | None:
    """The number of kernels that a call launches, including copies and fills; None on a CPU, or where the system
    refuses to profile the GPU."""
    if device.type != "cuda":
        return None
    call()
    activities = [torch.profiler.ProfilerActivity.CUDA]
    try:
        with torch.profiler.profile(activities=activities) as profile:
            call()
            torch.cuda.synchronize(device)
    except RuntimeError:
        return None
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events()) or None


def _resident(key: str) -> int:
    """A value from this process's memory status, in KiB."""
    return next(int(line.split()[1]) for line in _STATUS.read_text().splitlines() if line.startswith(key))
