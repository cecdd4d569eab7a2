"""Measures the time of a step on a GPU, and the time that the host needs to enqueue it."""

import math
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any
from weakref import WeakSet

import torch

CALLS = 20  # in a sample: the first event precedes the host's work for the first call, but not for the others
SAMPLE_MS = 50.0  # a sample of a slow step is as long as this, and the host's work for its first call a small part


_graphs: WeakSet[torch.cuda.CUDAGraph] = WeakSet()  # share their memory: no two run at once, nobody reads their results


class GpuClock:
    """Times calls of one step, with each set of inputs in turn.

    A sample is the time between two CUDA events around many calls. The calls are captured as one CUDA graph if the step
    allows it, so that a sample has no time of the host in it. Otherwise it has as much as the GPU waits for the host.

    Args:
        step: takes a set of inputs; it must have been called once, since compilation cannot be captured.
        inputs: the sets.
        capture: whether to capture the calls. A captured step computes with the same host-side values in each replay,
            which is wrong for a step that draws random numbers on the host or counts its calls.

    Attributes:
        graph: the captured calls, or None.
        calls: the number of calls in a sample.
    """

    def __init__(self, step: Callable[[Any], object], inputs: Sequence[Any], *, capture: bool) -> None:
        self.step, self.inputs = step, inputs
        turns = min(CALLS, SAMPLE_MS / max(self._once(), 1e-3)) / len(inputs)
        self.calls = len(inputs) * math.ceil(turns)
        self.graph = _captured(self._enqueue) if capture else None

    def sample(self) -> float:
        """The time of a call on the GPU in ms."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        if self.graph is None:
            self._enqueue()
        else:
            self.graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / self.calls

    def host(self) -> float:
        """The wall time in ms until a call, made while the GPU is idle, returns. The GPU is busy with it then, so that
        a sample taken next does not begin with a wait for the host."""
        torch.cuda.synchronize()
        started = time.perf_counter()
        self.step(self.inputs[0])
        return 1e3 * (time.perf_counter() - started)

    def _once(self) -> float:
        """The wall time of a call in ms, until the GPU has finished."""
        torch.cuda.synchronize()
        started = time.perf_counter()
        self.step(self.inputs[-1])
        torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - started)

    def _enqueue(self) -> None:
        for i in range(self.calls):
            self.step(self.inputs[i % len(self.inputs)])


def _captured(enqueue: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
    """The captured work, or None if it cannot be captured: it synchronises, for instance."""
    graph = torch.cuda.CUDAGraph()
    try:
        # a failed capture does not restore the stream
        with torch.cuda.stream(torch.cuda.current_stream()), warnings.catch_warnings():
            warnings.filterwarnings("error", "The CUDA Graph is empty")  # the work went to another stream
            with torch.cuda.graph(graph, pool=next((other.pool() for other in _graphs), None)):
                enqueue()
        graph.replay()  # the first one takes longer
        torch.cuda.synchronize()
    except Exception:
        # A failed capture leaves PyTorch's random generator in its capturing state, which refuses to draw; a complete
        # capture ends that state.
        with suppress(Exception), torch.cuda.graph(torch.cuda.CUDAGraph()):
            torch.zeros(1, device="cuda")
        return None
    _graphs.add(graph)
    return graph
