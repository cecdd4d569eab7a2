import os
import subprocess
import sys
import threading
from contextlib import nullcontext

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import ltfast
from ltfast.ops import agcl
from ltfast.ops.core import backends
from ltfast.ops.core.backends import BackendUnavailableError
from ltfast.ops.core.cases import Sizes
from ltfast.ops.core.dispatch import Kernels
from ops.every_op import EXAMPLES, exact_gradient, function_and_tensor

CPU = torch.device("cpu")
NO_TRITON = backends.why_not("triton", torch.device("cuda"))


def call():
    return agcl(torch.rand(3, 4), torch.zeros(3).long())


def python(script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "LTFAST_BACKEND")} | variables
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, cwd="/")


def test_the_device_decides():
    assert backends.resolve(CPU) == "native"
    assert backends.default_backend(torch.device("cuda")) == ("reference" if NO_TRITON else "triton")
    assert backends.default_backend(torch.device("mps")) == "reference"


def test_the_context_manager_overrides_and_restores():
    with ltfast.backend("reference"):
        assert backends.resolve(CPU) == "reference"
        with ltfast.backend("native"):
            assert backends.resolve(CPU) == "native"
        assert backends.resolve(CPU) == "reference"
    assert backends.resolve(CPU) == "native"


def test_contexts_of_two_threads_that_overlap():
    """Neither sees the other's, nor does this thread, and nothing of them is left."""
    entered, left, seen = threading.Barrier(3), threading.Barrier(3), {}

    def run(name, order):
        with ltfast.backend(name):
            entered.wait()
            seen[name] = backends.resolve(CPU)
            left.wait()
            if order:
                order.wait()
        seen[f"after {name}"] = backends.resolve(CPU)

    last = threading.Event()
    first_thread = threading.Thread(target=run, args=("reference", None))
    last_thread = threading.Thread(target=run, args=("native", last))
    first_thread.start()
    last_thread.start()
    entered.wait()
    with ltfast.backend("reference"):
        pass
    here = backends.resolve(CPU)
    left.wait()
    first_thread.join()
    last.set()
    last_thread.join()
    assert seen == {"reference": "reference", "native": "native", "after reference": "native", "after native": "native"}
    assert here == backends.resolve(CPU) == "native"


def test_the_variable_is_every_thread_s_default():
    script = """
import threading, torch, ltfast
from ltfast.ops.core import backends
resolve = lambda: print(backends.resolve(torch.device("cpu")))
with ltfast.backend("native"):
    resolve()
    thread = threading.Thread(target=resolve)
    thread.start()
    thread.join()
resolve()
"""
    assert python(script, LTFAST_BACKEND="reference").stdout.split() == ["native", "reference", "reference"]


@pytest.fixture
def kernels_run(monkeypatch):
    """The backends whose kernels run, collected as they do."""
    names, of = [], Kernels.of

    def recorded(kernels, backend, device):
        names.append(backend)
        return of(kernels, backend, device)

    monkeypatch.setattr(Kernels, "of", recorded)
    return names


OTHER = {"reference": "native", "native": "reference", "triton": "native"}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize(
    "backend",
    [
        "reference",
        "native",
        pytest.param("triton", marks=pytest.mark.skipif(NO_TRITON is not None, reason="no Triton")),
    ],
)
def test_backward_passes_run_where_the_forward_pass_ran(kernels_run, backend, name):
    """The first and the second one, in another context and another thread."""
    function, x = function_and_tensor(name)
    x.requires_grad_()

    def gradients(backward_backend):
        with ltfast.backend(backend):
            loss = function(x)
        found = []

        def run():
            with ltfast.backend(backward_backend):
                (first,) = torch.autograd.grad(loss, x, retain_graph=True)
                (again,) = torch.autograd.grad(loss, x, create_graph=True)
                (second,) = torch.autograd.grad(again.square().sum(), x)
                found.extend([first, again, second])

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        return found

    expected = gradients(backend)
    kernels_run.clear()
    for actual, exact in zip(gradients(OTHER[backend]), expected, strict=True):
        assert torch.equal(actual, exact)
    assert set(kernels_run) == ({backend} if backend != "reference" else set())


@pytest.mark.parametrize(
    "name", ["agcl", "balanced_bce", "cross_entropy", "queue_softmax", "queue_softmax, keys", "vmf_cross_entropy"]
)
def test_a_step_resolves_its_backend_once(monkeypatch, name):
    function, x = function_and_tensor(name)
    calls, resolve = [], backends.resolve

    def counted(*arguments, **options):
        calls.append(arguments)
        return resolve(*arguments, **options)

    monkeypatch.setattr(backends, "resolve", counted)
    exact_gradient(function, x)
    assert len(calls) == 1


def test_activation_checkpointing_in_a_context(kernels_run):
    function, x = function_and_tensor("agcl")
    x.requires_grad_()
    contexts = {"use_reentrant": False, "context_fn": lambda: (nullcontext(), ltfast.backend("reference"))}
    with ltfast.backend("reference"):
        loss = checkpoint(function, x, **contexts)
        expected = exact_gradient(function, x)
    torch.testing.assert_close(torch.autograd.grad(loss, x)[0], expected)
    assert kernels_run == []


@pytest.mark.parametrize("name", ["queue_softmax, keys", "agcl"])
def test_compiled_code_follows_the_thread_s_context(kernels_run, name):
    function, x = function_and_tensor(name)
    x.requires_grad_()
    expected = exact_gradient(function, x)
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")

    def runs():
        kernels_run.clear()
        loss = compiled(x)
        with ltfast.backend("reference"):  # changes nothing: the forward pass has decided
            torch.testing.assert_close(torch.autograd.grad(loss, x)[0], expected)
        return set(kernels_run)

    found = [runs()]
    with ltfast.backend("reference"):
        found.append(runs())
        thread = threading.Thread(target=lambda: found.append(runs()))
        thread.start()
        thread.join()
    found.append(runs())
    assert found == [{"native"}, set(), {"native"}, {"native"}]


def test_an_unknown_backend_is_refused():
    message = "name is 'fast': expected one of 'reference', 'native', 'triton'"
    with pytest.raises(ValueError, match=message), ltfast.backend("fast"):
        pass


def test_native_off_the_cpu_says_why():
    with ltfast.backend("native"), pytest.raises(BackendUnavailableError, match="its kernels run on the CPU"):
        backends.resolve(torch.device("cuda"))


def test_an_op_has_no_reference_kernel():
    with ltfast.backend("reference"), pytest.raises(BackendUnavailableError, match=r"functions of ltfast\.ops"):
        backends.resolve_kernel(CPU)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reference", "native"])
def test_the_variable_overrides(name):
    script = "import torch; from ltfast.ops.core import backends; print(backends.resolve(torch.device('cpu')))"
    assert python(script, LTFAST_BACKEND=name).stdout.strip() == name


@pytest.mark.slow
def test_the_variable_overrides_with_a_reason_where_it_cannot():
    script = "import torch; from ltfast.ops import agcl; agcl(torch.rand(3, 4), torch.zeros(3).long())"
    for name, reason in [("triton", NO_TRITON or "it needs a GPU tensor"), ("fast", "there is no such backend")]:
        result = python(script, LTFAST_BACKEND=name)
        assert result.returncode != 0
        assert f"backend '{name}' cannot run: {reason}" in result.stderr


WITHOUT_NATIVE = """
import sys, warnings
sys.modules["ltfast._native"] = None
import torch
from ltfast.losses import AGCLLoss
loss = AGCLLoss([5, 4])
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(3):
        loss(torch.rand(3, 2, requires_grad=True), torch.tensor([0, 1, 1])).backward()
assert len(caught) == 1, caught
print(caught[0].message)
import ltfast
with ltfast.backend("native"):
    loss(torch.rand(3, 2), torch.tensor([0, 1, 1]))
"""


def test_without_native_kernels_the_reference_runs_and_says_so_once():
    result = python(WITHOUT_NATIVE)
    assert "slow plain PyTorch reference on cpu: ltfast was installed without its C++ kernels" in result.stdout
    assert "backend 'native' cannot run: ltfast was installed without its C++ kernels" in result.stderr


def test_describe_names_every_backend():
    rows = {row["name"]: row for row in backends.describe()}
    assert list(rows) == list(backends.BACKENDS)
    assert rows["reference"]["status"] == rows["native"]["status"] == "available"
    assert backends.native().isa() in rows["native"]["detail"]


PRODUCTS = ("queue_softmax", "vmf_", "class_parallel_vmf_")
MANY = Sizes(rows=64, classes=4096, width=512, dtype=torch.float32)  # so many that the threads share them


@pytest.mark.parametrize("name", EXAMPLES)
def test_no_result_depends_on_pytorch_s_thread_count(name):
    threads = torch.get_num_threads()
    function, x = function_and_tensor(name, MANY)
    x.requires_grad_()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            loss = function(x)
            found.append((loss.detach(), *torch.autograd.grad(loss, x)))
    finally:
        torch.set_num_threads(threads)
    for loss, gradient in found[1:]:
        torch.testing.assert_close(loss, found[0][0], rtol=1e-6, atol=1e-6)  # small next to what it is a difference of
        # PyTorch's own products, for queues and features, share the work out in another way for each number of threads.
        # A logit of 700 then differs by a few of its roundings of 6e-5, and its weight by as much in proportion.
        largest = found[0][1].abs().max().item()
        rtol, atol = (3e-4, 1e-6 * largest) if name.startswith(PRODUCTS) else (1e-6, 1e-9)
        torch.testing.assert_close(gradient, found[0][1], rtol=rtol, atol=atol)


THREADS = """
import torch
from ltfast.ops import agcl
def threads():
    return int(next(l for l in open("/proc/self/status") if l.startswith("Threads")).split()[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3])
def test_native_kernels_use_as_many_threads_as_pytorch(count):
    script = f"""
torch.set_num_threads(1)  # filling the tensors starts no other thread
x, y = torch.zeros(256, 4096), torch.zeros(256).long()
torch.set_num_threads({count})
before = threads()
agcl(x, y)
print(threads() - before)
"""
    assert python(THREADS + script).stdout.strip() == str(count - 1)


@pytest.mark.slow
def test_native_and_pytorch_share_one_thread_pool():
    script = """
torch.set_num_threads(4)
torch.rand(4_000_000).exp().sum()
before = threads()
agcl(torch.rand(256, 4096), torch.zeros(256).long())
print(threads() - before)
"""
    assert python(THREADS + script).stdout.strip() == "0"


@pytest.mark.slow
def test_a_triton_that_is_too_old_is_not_used():
    script = """
import torch
torch.__version__ = torch.torch_version.TorchVersion("2.8.0+cu128")
import importlib.util
importlib.util.find_spec = lambda name: name
from ltfast.ops.core import backends
print(backends.default_backend(torch.device("cuda")), backends.why_not("triton", torch.device("cuda")))
"""
    reason = "its kernels need PyTorch 2.9 (Triton 3.5), this is PyTorch 2.8.0+cu128"
    assert python(script).stdout.strip() == f"reference {reason}"


@pytest.mark.slow
@pytest.mark.skipif(NO_TRITON is not None, reason=str(NO_TRITON))
def test_checks_of_values_where_kernels_make_none():
    script = "import torch; from ltfast.ops import agcl; agcl(torch.rand(3, 4), torch.tensor([0, 4, 1]))"
    variables = {"LTFAST_BACKEND": "triton", "TRITON_INTERPRET": "1"}
    assert python(script, **variables).returncode == 0
    result = python(script, LTFAST_CHECKS="1", **variables)
    assert "ValueError: target[1] is 4: expected a label in [0, 4)" in result.stderr
