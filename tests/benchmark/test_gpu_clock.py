"""Tests the clock of a GPU, with a stand-in for PyTorch's events and graphs."""

import gc
from contextlib import contextmanager, nullcontext

import pytest
import torch

from ltfast.benchmark import clock, exponentials, gpu_clock, run
from ltfast.benchmark.ceilings import Ceilings
from ltfast.ops.core.bench import Case, Work

CUDA = torch.device("cuda")
MS = 1e-3


class FakeGpu:
    """A GPU whose work is a number of milliseconds, and a host that takes its own time to enqueue it.

    Attributes:
        now: the time of the host in ms.
        free: when the GPU will have done what is enqueued.
    """

    def __init__(self):
        self.now = self.free = 0.0
        self.captured = None  # the work of the graph that is being captured
        self.closed = 0  # complete captures

    def perf_counter(self):
        return self.now * MS

    def synchronize(self, device=None):
        if self.captured is not None:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.now = max(self.now, self.free)

    def enqueue(self, host, work):
        self.now += host
        if self.captured is None:
            self.free = max(self.free, self.now) + work
        else:
            self.captured += work

    def event(self, enable_timing):
        assert enable_timing
        gpu = self

        class Event:
            def record(self):
                gpu.free = self.at = max(gpu.free, gpu.now)

            def synchronize(self):
                gpu.synchronize()

            def elapsed_time(self, end):
                return end.at - self.at

        return Event()

    def graph(self):
        gpu = self

        class Graph:
            def pool(self):
                return self.memory

            def replay(self):
                gpu.enqueue(0.01, self.work)

        return Graph()

    @contextmanager
    def capture(self, graph, pool=None):
        self.captured = 0.0
        try:
            yield
            graph.work, graph.memory = self.captured, pool or object()
            self.closed += 1
        finally:
            self.captured = None


@pytest.fixture
def gpu(monkeypatch):
    fake = FakeGpu()
    monkeypatch.setattr(gpu_clock, "time", fake)
    monkeypatch.setattr(clock, "time", fake)
    for name, value in {
        "synchronize": fake.synchronize,
        "Event": fake.event,
        "CUDAGraph": fake.graph,
        "graph": fake.capture,
        "current_stream": lambda: None,
        "stream": nullcontext,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *size, device=None: zeros(*size))
    return fake


def test_a_graph_has_no_time_of_the_host(gpu):
    """A step of 0.2 ms that the host needs 0.5 ms to enqueue."""
    watch = clock.Stopwatch(lambda work: gpu.enqueue(0.5, work), [0.1, 0.3], CUDA)
    watch.run(0, 3)
    timing = watch.timing()
    assert timing.median_ms == pytest.approx(0.2)
    assert timing.host_ms == pytest.approx(0.5)
    assert timing.captured
    assert timing.rounds == 3
    assert watch.gpu.calls == 20


def test_graphs_share_their_memory_while_they_live(gpu):
    first, second = (clock.Stopwatch(lambda work: gpu.enqueue(0, work), [0.1], CUDA) for _ in range(2))
    memory = first.gpu.graph.pool()
    assert second.gpu.graph.pool() is memory
    del first, second
    gc.collect()
    third = clock.Stopwatch(lambda work: gpu.enqueue(0, work), [0.1], CUDA)
    assert third.gpu.graph.pool() is not memory


def test_graphs_are_gone_when_memory_is_measured(gpu, monkeypatch):
    alive = []
    monkeypatch.setattr(clock, "cold_sets", lambda make, device: [0.1])
    monkeypatch.setattr(clock, "peak_memory", lambda call, device: alive.append(len(gpu_clock._graphs)))
    monkeypatch.setattr(clock, "launches", lambda call, device: 2)
    makes = {name: lambda: lambda work: gpu.enqueue(0.5, work) for name in ("ltfast", "eager")}
    case = Case("agcl", "small", "1", torch.float32, Work(bytes=1), lambda: None, makes)
    limits = Ceilings(bytes=1e9, flops={"float32": 1e9}, exps=1e9)
    (row, _), missing = run.run_case(case, CUDA, limits, seconds=1e-3)
    assert missing == []
    assert alive == [0, 0]
    assert (row["captured"], row["launches"]) == (True, 2)
    assert (row["median_ms"], row["host_ms"]) == pytest.approx((0.1, 0.5))


def test_a_step_that_synchronises_is_timed_by_calls(gpu):
    def step(work):
        gpu.enqueue(0.01, work / 2)
        gpu.synchronize()
        gpu.enqueue(0.01, work / 2)

    watch = clock.Stopwatch(step, [1.0], CUDA)
    watch.run(0, 2)
    timing = watch.timing()
    assert not timing.captured
    assert gpu.closed == 1  # the capture that ends the failed one's state
    assert timing.median_ms == pytest.approx(1.0, abs=0.03)


def test_the_host_is_hidden_where_the_gpu_takes_longer(gpu):
    watch = clock.Stopwatch(lambda work: gpu.enqueue(0.4, work), [1.0], CUDA, capture=False)
    watch.run(0, 2)
    assert gpu.closed == 0
    assert watch.timing().median_ms == pytest.approx(1.0)
    slow = clock.Stopwatch(lambda work: gpu.enqueue(0.4, work), [0.1], CUDA, capture=False)
    slow.run(0, 2)
    assert slow.timing().median_ms == pytest.approx(0.4, rel=0.1)


@pytest.mark.parametrize(("work", "sets", "calls"), [(0.01, 16, 32), (0.01, 3, 21), (10.0, 2, 6), (500.0, 2, 2)])
def test_a_sample_has_every_set_as_often_and_lasts(gpu, work, sets, calls):
    watch = clock.Stopwatch(lambda work: gpu.enqueue(0.0, work), [work] * sets, CUDA)
    assert watch.gpu.calls == calls


@pytest.mark.gpu
def test_a_product_is_captured():
    x = torch.randn(2048, 2048, device="cuda", requires_grad=True)
    watch = clock.Stopwatch(lambda x: torch.autograd.grad((x @ x).sum(), x), [x], CUDA)
    watch.run(0.05, 2)
    timing = watch.timing()
    assert timing.captured
    plain = clock.Stopwatch(lambda x: torch.autograd.grad((x @ x).sum(), x), [x], CUDA, capture=False)
    plain.run(0.05, 2)
    assert timing.median_ms == pytest.approx(plain.timing().median_ms, rel=0.3)
    assert 0 < timing.host_ms < 50


@pytest.mark.gpu
def test_after_a_failed_capture_the_gpu_works():
    """A step that draws random numbers and synchronises cannot be captured; without care, PyTorch's generator refuses
    to draw afterwards."""
    stream = torch.cuda.current_stream()
    watch = clock.Stopwatch(lambda size: torch.randn(size, device="cuda").sum().item(), [1000], CUDA)
    watch.run(0.01, 2)
    assert not watch.timing().captured
    assert torch.cuda.current_stream() == stream
    assert torch.randn(10, device="cuda").isfinite().all()
    again = clock.Stopwatch(lambda x: x + torch.randn_like(x), [torch.ones(1000, device="cuda")], CUDA)
    assert again.gpu.graph is not None


@pytest.mark.gpu
def test_the_rate_of_exponentials_is_that_of_the_special_function_units():
    from ltfast.benchmark import ceilings

    properties = torch.cuda.get_device_properties(CUDA)
    most = 16 * properties.multi_processor_count * properties.clock_rate * 1e3
    assert 0.5 * most < ceilings._exps(CUDA) < 1.1 * most


def test_values_of_the_kernel_of_exponentials():
    values = torch.linspace(-2, 3, 2048)
    expected = values.double()
    for _ in range(exponentials.ROUNDS):
        expected = torch.exp2(-expected)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    ours = values.to(device)
    exponentials.exponentials(ours)
    torch.testing.assert_close(ours.cpu().double(), expected, rtol=1e-5, atol=0)
