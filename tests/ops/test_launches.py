"""What a step of a fused loss launches, and the reduction inside the kernel of the rows, which saves two launches."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ltfast.ops import balanced_bce
from ops.conftest import NO_TRITON, PLACES

MOST = 3  # the kernel of the rows, the incoming gradient that autograd fills, and the scaling of the stored one

if NO_TRITON is None:
    import triton
    import triton.language as tl

    from ltfast.ops.reduction import counter, launch
    from ltfast.ops.reduction.triton import add_losses, mean_share, reduction_of

    @triton.jit(do_not_specialize=["rows"])
    def row_kernel(rows_of_losses, target, losses, total, arrived, mean_weight, rows, ignore_index: "i64",  # noqa: F821
                   SHARE: tl.constexpr, ADD: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
        row = tl.program_id(0)
        share = mean_share(target, mean_weight, rows, ignore_index, SHARE, ACC)
        ignored = tl.load(target + row) == ignore_index
        tl.store(losses + row, tl.where(ignored, 0.0, tl.load(rows_of_losses + row)) * share)
        add_losses(losses, total, arrived, rows, ADD)


pytestmark = pytest.mark.skipif(NO_TRITON is not None, reason=str(NO_TRITON))


def reduced(values, target, reduction, ignore_index=-100):
    """The reduction of the losses of rows, and its counter after the launch."""
    rows = len(values)
    plan = reduction_of(torch.full_like(values, 7), target, reduction, ignore_index)
    label = torch.zeros(rows, dtype=torch.int64, device=values.device) if target is None else target
    row_kernel[(rows,)](
        values, label, *plan.arguments, rows, ignore_index, **plan.constants,
        ACC=tl.float64 if values.dtype == torch.float64 else tl.float32,
    )  # fmt: skip
    return plan.result(), plan.arrived


TRITON_PLACES = pytest.mark.parametrize("place", [place for place in PLACES if place.id != "native"], indirect=True)


@TRITON_PLACES
@pytest.mark.parametrize("rows", [1, 5, 257, 1100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_reduction(place, rows, dtype, monkeypatch):
    if place.interpreted and (rows, dtype) == (1100, torch.float64):
        pytest.skip("slow in the interpreter")
    values = torch.randn(rows, dtype=dtype, device=place.device)
    target = torch.arange(rows, device=place.device) % 3 + 4
    counted = target != 5
    kept = torch.where(counted, values, 0).double()
    expected = {
        ("none", True): kept,
        ("sum", True): kept.sum(),
        ("mean", True): kept.sum() / counted.sum(),
        ("mean", False): values.double().mean(),
    }
    if place.interpreted and rows > 300:  # one is enough
        expected = {("mean", True): expected["mean", True]}
    for (reduction, labelled), exact in expected.items():
        found = []
        for most in (launch.MOST_COUNTED, 0), (launch.MOST_COUNTED, launch.MOST_ADDED), (0, launch.MOST_ADDED):
            monkeypatch.setattr(launch, "MOST_COUNTED", most[0])
            monkeypatch.setattr(launch, "MOST_ADDED", most[1])
            result, arrived = reduced(values, target if labelled else None, reduction, 5)
            found.append(result)
            assert arrived is None or arrived == 0
            tolerance = 1e-12 if dtype == torch.float64 else 1e-6
            torch.testing.assert_close(result.double(), exact, rtol=tolerance, atol=tolerance)
            monkeypatch.undo()
        assert torch.equal(found[1], found[2])  # whoever counts


@TRITON_PLACES
def test_the_mean_of_no_label_is_nan(place):
    values, target = torch.ones(4, device=place.device), torch.full((4,), 5, device=place.device)
    assert reduced(values, target, "mean", 5)[0].isnan()
    assert reduced(values, target, "sum", 5)[0] == 0


def test_counters_are_kept_for_each_stream_but_not_for_a_graph(monkeypatch):
    device = torch.device("cuda", 0)
    made = []

    def lasting_zero(device):
        made.append(torch.zeros((), dtype=torch.int32))
        return made[-1]

    def on(handle, capturing=False, index=0):
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
        stream = SimpleNamespace(device_index=index, cuda_stream=handle)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
        return counter.zero_counter(device)

    monkeypatch.setattr(counter, "lasting_zero", lasting_zero)
    monkeypatch.setattr(counter, "_kept", {})
    assert on(0) is on(0)
    assert on(0) is not on(8)
    assert on(0) is not on(0, index=1)
    assert len(made) == 3
    with FakeTensorMode():
        captured = on(0, capturing=True)
        assert captured.device.type == "cuda"
        assert captured is not on(0, capturing=True)
    assert len(made) == 3


@pytest.mark.parametrize("name", ["balanced_bce"])
def test_a_step_launches_at_most_three_kernels(name):
    # In a process of its own: this one may have Triton's interpreter switched on.
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    script = Path(__file__).parents[2] / "bench/count_launches.py"
    result = subprocess.run([sys.executable, script, name], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert len(found["kernels"]) + len(found["operators"]) <= MOST, found
    assert found["ordered"]
    assert all(found["wide"])


def balanced_bce_step(rows=256, classes=1000):
    logits = torch.randn(rows, classes, device="cuda", requires_grad=True)
    target, bias = torch.randint(classes, (rows,), device="cuda"), torch.randn(classes, device="cuda")
    return lambda: balanced_bce(logits, target, bias), logits


STEPS = pytest.mark.parametrize("step", [pytest.param(balanced_bce_step, id="balanced_bce")])


@pytest.mark.gpu
@STEPS
def test_a_gpu_runs_at_most_three_kernels_a_step(step):
    loss, logits = step()
    for _ in range(3):
        torch.autograd.grad(loss(), logits)
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        torch.autograd.grad(loss(), logits)
        torch.cuda.synchronize()
    # kernels, memcpys and memsets
    on_gpu = [event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    assert 0 < len(on_gpu) <= MOST, on_gpu


@pytest.mark.gpu
@STEPS
def test_a_captured_step_and_steps_on_two_streams(step):
    loss, logits = step()
    expected = loss().detach(), *torch.autograd.grad(loss(), logits)
    streams = torch.cuda.Stream(), torch.cuda.Stream()
    with torch.cuda.stream(streams[0]):
        torch.autograd.grad(loss(), logits)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = loss()
        (gradient,) = torch.autograd.grad(value, logits)
    results = []
    for _ in range(20):
        for stream in streams:
            with torch.cuda.stream(stream):
                results.append(loss().detach())
    torch.cuda.synchronize()
    for stream in streams:
        with torch.cuda.stream(stream):
            graph.replay()
        torch.cuda.synchronize()
        results.append(value.detach().clone())
        assert torch.equal(gradient, expected[1])
    assert all(torch.equal(result, expected[0]) for result in results)


@pytest.mark.gpu
@STEPS
def test_compiled_graphs_leave_the_counters_alone(step):
    loss, logits = step()
    expected = loss().detach(), torch.autograd.grad(loss(), logits)[0]
    compiled = torch.compile(loss, mode="reduce-overhead")
    for _ in range(4):  # a warm-up, a capture, replays
        torch.compiler.cudagraph_mark_step_begin()
        value = compiled()
        result = value.detach().clone()
        assert torch.equal(torch.autograd.grad(value, logits)[0], expected[1])
        assert torch.equal(result, expected[0])
        assert torch.equal(loss().detach(), expected[0])
