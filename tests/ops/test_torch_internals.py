"""Each private name of PyTorch that ltfast needs is there and means what it meant; a failure says what breaks."""

import re
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.autograd import forward_ad
from torch.func import grad, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from ltfast.ops.core import torch_internals

ROOT = Path(torch_internals.__file__).parents[2]


class Seen(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def without(name):
    """The function as it is named, and with the private name gone."""
    return pytest.mark.parametrize("missing", [None, pytest.param(name, id="the public way")])


@pytest.fixture(autouse=True)
def _take_away(request, monkeypatch):
    name = getattr(request.node, "callspec", None) and request.node.callspec.params.get("missing")
    if name:
        assert getattr(torch_internals, name) is not None, f"this PyTorch has lost {name}: the public way takes longer"
        monkeypatch.setattr(torch_internals, name, None)


def test_no_other_file_touches_private_names():
    pattern = re.compile(r"torch\._(?!_version)|from torch\S*\._|\b_current_level\b|\w\._version\b")
    for path in (path for folder in ("ops", "losses", "engine") for path in ROOT.glob(f"{folder}/**/*.py")):
        if path.name != "torch_internals.py":
            lines = [line for line in path.read_text().splitlines() if pattern.search(line)]
            assert not lines, f"{path}: move this to ltfast/ops/core/torch_internals.py: {lines}"


def test_memory_that_nobody_watches_is_plain():
    """Else a kernel reads what is not there, or drops what PyTorch wraps around a tensor."""
    x, found = torch.rand(2, 3), {}
    assert torch_internals.is_plain(x)
    assert not torch_internals.is_plain(nn.Parameter(x))
    assert not torch_internals.is_watched()
    with Seen():
        assert not torch_internals.is_plain(x)
        assert torch_internals.is_watched()
    with forward_ad.dual_level():
        assert torch_internals.is_plain(x)
        assert not torch_internals.is_plain(forward_ad.make_dual(x, x))

    def look(row):
        found[len(found)] = torch_internals.is_plain(row), torch_internals.is_watched()
        return row.sum()

    vmap(look)(x)
    grad(look)(x)
    assert set(found.values()) == {(False, True)}


@without("_has_storage")
def test_batched_gradients_have_no_storage(missing):
    """Else a backward pass scales the stored gradient in place though the incoming gradients are several."""
    assert torch_internals.has_storage(torch.rand(2))
    found = []

    class Look(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, incoming):
            found.append(torch_internals.has_storage(incoming))
            return incoming

    x = torch.rand(2, requires_grad=True)
    torch.autograd.grad(Look.apply(x), x, torch.eye(2), is_grads_batched=True)
    assert found == [False]


def test_transforms_are_noticed_and_unwrapped():
    """Else torch.func gets kernels that drop its wrappers, and labels inside vmap cannot be read."""
    x, found = torch.rand(2, 3), []
    assert not torch_internals.in_transform()

    def look(row):
        found.append((torch_internals.in_transform(), torch_internals.unwrapped(row)))
        return row.sum()

    vmap(look)(x)
    assert found[0][0]
    assert torch.equal(found[0][1], x)


def test_tangents_are_noticed():
    """Else forward-mode derivatives are dropped without a word."""
    x = torch.rand(2)
    assert not torch_internals.in_forward_mode()
    with forward_ad.dual_level():
        assert torch_internals.in_forward_mode()
        assert not torch_internals.has_tangent(x)
        assert torch_internals.has_tangent(forward_ad.make_dual(x, x))


@without("_any_autocast")
def test_autocast_of_any_device_is_noticed(missing):
    """Else the products inside a kernel are taken in half precision."""
    assert not torch_internals.in_autocast()
    for device in ("cpu", "cuda"):
        with torch.autocast(device, torch.bfloat16):
            if torch.is_autocast_enabled(device):  # not where a device is missing
                assert torch_internals.in_autocast()


@without("_no_autocast")
def test_autocast_is_switched_off(missing):
    with torch.autocast("cpu", torch.bfloat16):
        with torch_internals.without_autocast():
            assert torch.mm(torch.rand(2, 2), torch.rand(2, 2)).dtype == torch.float32
        assert torch.mm(torch.rand(2, 2), torch.rand(2, 2)).dtype == torch.bfloat16


def test_below_autograd_nothing_is_recorded():
    """Else an op inside its own backward rule calls itself without end."""
    x = torch.rand(2, requires_grad=True)
    with torch_internals.below_autograd():
        assert not (x * 2).requires_grad


@without("_keeps_graph")
@pytest.mark.parametrize("keep", [True, False])
def test_a_kept_graph_is_noticed(missing, keep):
    """Else a second backward pass finds the stored gradient scaled already."""
    found = []

    class Look(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, incoming):
            found.append(torch_internals.keeps_graph())
            return incoming

    Look.apply(torch.rand(2, requires_grad=True)).sum().backward(retain_graph=keep)
    assert found == [keep or missing is not None]


def test_a_backward_pass_is_noticed():
    """Else a loss that counts its labels counts them again where activations are checkpointed."""
    found = []
    x = torch.ones(2, requires_grad=True)
    x.register_hook(lambda gradient: found.append(torch_internals.in_backward()))
    assert not torch_internals.in_backward()
    x.sum().backward()
    assert found == [True]
    assert not torch_internals.in_backward()


def test_changes_in_place_are_counted():
    """Else create_graph=True differentiates a queue that has moved on."""
    x = torch.rand(2)
    before = torch_internals.version(x)
    x.add_(1)
    assert torch_internals.version(x) == before + 1


@without("_flash_attention")
@pytest.mark.parametrize("masked", [False, True])
def test_attention_gives_the_log_sum_exp(missing, masked):
    q, keys = torch.randn(2, 1, 5, 8), torch.randn(2, 1, 7, 8)
    mask = torch.randn(2, 1, 5, 7) if masked else None
    products = (q @ keys.mT).double() / 0.3 + (mask if masked else 0)
    lse, mean = torch_internals.flash_attention(q, keys, mask, 0.3)
    torch.testing.assert_close(lse.double(), products.logsumexp(-1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mean.double(), products.softmax(-1) @ keys.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["flash", "cudnn"])
def test_attention_of_a_gpu_gives_the_log_sum_exp(backend, monkeypatch):
    """Else the benchmark cannot split the keys of attention. `tests/benchmark` compares the values on a GPU."""
    shown = str(torch_internals._gpu_attentions[backend].default._schema)
    assert shown.split(" -> ")[1].startswith("(Tensor output, Tensor logsumexp,")
    assert ("Tensor? attn_bias, bool compute_log_sumexp," in shown) == (backend == "cudnn")
    monkeypatch.setitem(torch_internals._gpu_attentions, backend, None)
    with pytest.raises(RuntimeError, match=f"no log-sum-exp of {backend} attention"):
        torch_internals.gpu_attention(backend, torch.ones(1, 1, 2, 4), torch.ones(1, 1, 3, 4), 0.1)


def test_rows_are_gathered_in_a_compiled_graph():
    """Else class-parallel losses cannot be compiled."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        x = torch.rand(2, 3, requires_grad=True)
        rows = torch_internals.compiled_gather(x)
        assert torch.equal(rows, x)
        assert torch.equal(torch.autograd.grad(rows, x, torch.ones(2, 3))[0], torch.ones(2, 3))
    finally:
        distributed.destroy_process_group()


def test_leaves_of_a_tree():
    assert torch_internals.leaves({"a": [1, (2, 3)], "b": 4}) == [1, 2, 3, 4]


def test_a_module_keeps_its_own_buffers():
    """Else DistributedDataParallel overwrites the buffers that differ between processes."""
    module = nn.BatchNorm1d(3)
    torch_internals.leave_to_processes(module, {"running_mean"})
    assert set(module._ddp_params_and_buffers_to_ignore) == {"running_mean"}


@without("_foreach_mul")
def test_squares_of_lists_of_tensors(missing):
    """Otherwise the benchmark of ``taylor_importance_`` has no peer of few launches."""
    totals, left, right = ([torch.rand(3), torch.rand(2, 2)] for _ in range(3))
    expected = [total + (one * other) ** 2 for total, one, other in zip(totals, left, right, strict=True)]
    torch_internals.foreach_add_squares(totals, left, right)
    torch.testing.assert_close(totals, expected)


@without("_foreach_copy")
def test_copies_of_lists_of_tensors(missing):
    """Otherwise the benchmark of ``taylor_importance_`` has no lower bound of few launches."""
    targets, sources = ([torch.rand(3), torch.rand(2, 2)] for _ in range(2))
    torch_internals.foreach_copy(targets, sources)
    assert all(map(torch.equal, targets, sources))
