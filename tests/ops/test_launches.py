"""What a step of a fused loss launches, and the reduction inside the kernel of the rows, which saves two launches."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ltfast.ops import agcl, balanced_bce, cross_entropy, vmf_cross_entropy
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
            # terms of a sum may cancel each other
            size = max(1.0, kept.abs().sum().item()) if reduction == "sum" else 1.0
            torch.testing.assert_close(result.double(), exact, rtol=tolerance, atol=tolerance * size)
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


PRODUCTS = {"balanced_bce": 0, "agcl": 0, "cross_entropy": 0, "vmf_cross_entropy": 2}  # of matrices, in a step


@pytest.fixture(scope="module")
def launched():
    """The launches of a step of each loss."""
    # In a process of its own: this one may have Triton's interpreter switched on.
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    script = Path(__file__).parents[2] / "bench/count_launches.py"
    result = subprocess.run([sys.executable, script, *PRODUCTS], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    return dict(zip(PRODUCTS, map(json.loads, result.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_step_launches_at_most_three_kernels(launched, name):
    """Beside matrix products."""
    found, products = launched[name], PRODUCTS[name]
    others = [operator for operator in found["operators"] if "mm" not in operator]
    assert len(found["operators"]) - len(others) == products, found
    assert len(found["kernels"]) + len(others) <= MOST, found
    assert found["ordered"]
    if products == 0:
        assert all(found["wide"])  # loads and stores of 16 bytes


def balanced_bce_step(rows=256, classes=1000):
    logits = torch.randn(rows, classes, device="cuda", requires_grad=True)
    target, bias = torch.randint(classes, (rows,), device="cuda"), torch.randn(classes, device="cuda")
    return lambda: balanced_bce(logits, target, bias), logits


def cross_entropy_step(rows=256, classes=1000):
    logits = torch.randn(rows, classes, device="cuda", requires_grad=True)
    target, bias = torch.randint(classes, (rows,), device="cuda"), torch.randn(classes, device="cuda")
    return lambda: cross_entropy(logits, target, bias), logits


def agcl_step(rows=256, classes=1000, noisy=False):
    cosine = (torch.rand(rows, classes, device="cuda") * 2 - 1).requires_grad_()
    target = torch.randint(classes, (rows,), device="cuda")
    class_noise = torch.rand(classes, device="cuda") if noisy else None
    return lambda: agcl(cosine, target, class_noise), cosine


def noisy_agcl_step():
    return agcl_step(noisy=True)


def vmf_cross_entropy_step(rows=256, classes=1000, width=128):
    features = torch.nn.functional.normalize(torch.randn(rows, width, device="cuda")).requires_grad_()
    directions = torch.nn.functional.normalize(torch.randn(classes, width, device="cuda"))
    target, kappa = torch.randint(classes, (rows,), device="cuda"), 100 * torch.rand(classes, device="cuda")
    return lambda: vmf_cross_entropy(features, target, directions, kappa), features


REPEATABLE = [
    pytest.param(balanced_bce_step, id="balanced_bce"),
    pytest.param(agcl_step, id="agcl"),
    pytest.param(cross_entropy_step, id="cross_entropy"),
    pytest.param(vmf_cross_entropy_step, id="vmf_cross_entropy"),
]
STEPS = pytest.mark.parametrize("step", REPEATABLE)
MATRIX_PRODUCT = re.compile("gemm|gemv|cutlass|cublas|nvjet|splitk", re.IGNORECASE)


@pytest.mark.gpu
@pytest.mark.parametrize("step", [*REPEATABLE, pytest.param(noisy_agcl_step, id="agcl-with-noise")])
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
    on_gpu = [name for name in on_gpu if not MATRIX_PRODUCT.search(name)]
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
