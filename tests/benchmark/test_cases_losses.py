"""Every implementation computes the same as ltfast's, so that their times are comparable."""

from functools import partial

import pytest
import torch
from torch.nn import functional as F

from ltfast.benchmark.cases import proco
from ltfast.ops.agcl import bench as agcl
from ltfast.ops.balanced_bce import bench as balanced_bce
from ltfast.ops.bessel import bench as bessel
from ltfast.ops.class_sums import bench as class_sums
from ltfast.ops.core.bench import Unavailable
from ltfast.ops.core.torch_internals import flash_attention
from ltfast.ops.cross_entropy import bench as cross_entropy
from ltfast.ops.linear import bench as linear
from ltfast.ops.queue_softmax import bench as queue_softmax
from ltfast.ops.vmf import bench as vmf

CPU = torch.device("cpu")
DRAWS = 20_000


@pytest.fixture(autouse=True)
def same_random_numbers():
    torch.manual_seed(0)


def results(case, *, without=("copy",)):
    """The results of one step on the same inputs: ltfast's, and those of the others by name."""
    inputs = case.inputs()
    steps = {name: make for name, make in case.implementations.items() if name not in without and "compile" not in name}
    values = {name: make()(inputs) for name, make in steps.items()}
    return values.pop("ltfast"), values


def check(case, *peers, **tolerance):
    ours, others = results(case, without=("copy", "linear + cross_entropy"))
    assert set(others) == set(peers)
    for name, theirs in others.items():
        torch.testing.assert_close(ours, theirs, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


def test_agcl_has_the_same_mean_gradient():
    """The noise differs, so every row is another sample for the same logits and label."""
    case = agcl.case(CPU, "small", DRAWS, 5, torch.float32)
    cosine = torch.tensor([0.6, -0.2, 0.1, 0.3, -0.5]).repeat(DRAWS, 1).requires_grad_()
    inputs = cosine, torch.full((DRAWS,), 3)
    ours, theirs = (DRAWS * case.implementations[name]()(inputs)[0] for name in ("ltfast", "eager"))
    error = ((ours.var(0) + theirs.var(0)) / DRAWS).sqrt()
    assert (error > 0).all()
    assert ((ours.mean(0) - theirs.mean(0)).abs() < 5 * error).all()


@pytest.mark.parametrize("soft", [False, True], ids=["labels", "soft"])
def test_balanced_bce(soft):
    check(balanced_bce.case(CPU, "small", 7, 5, torch.float32, soft), "eager", rtol=1e-5, atol=1e-6)


def test_balanced_bce_in_bfloat16():
    check(balanced_bce.case(CPU, "small", 7, 5, torch.bfloat16), "eager", rtol=0.05, atol=3e-4)


@pytest.mark.parametrize("soft", [False, True], ids=["labels", "soft"])
def test_cross_entropy(soft):
    check(cross_entropy.case(CPU, "small", 7, 5, torch.float32, soft), "eager", rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("cases", "peers"),
    [
        (linear.cross_entropy_cases, {"linear, then ltfast", "eager", "liger's chunks"}),
        (linear.balanced_bce_cases, {"linear, then ltfast", "eager"}),
        (linear.agcl_cases, {"linear, then ltfast"}),
    ],
)
def test_linear(monkeypatch, cases, peers):
    monkeypatch.setattr(linear, "SIZES", {"small": (37, 6, 5)})
    (case,) = cases(CPU)
    *layer, target, vector = case.inputs()
    inputs = *layer, target, 0 * vector if case.op == "linear_agcl" else vector  # whose noise differs
    steps = {name: make for name, make in case.implementations.items() if "compile" not in name}
    steps.pop("F.linear_cross_entropy", None)  # not in every PyTorch
    expected = steps.pop("ltfast")()(inputs)
    assert set(steps) == peers
    for make in steps.values():
        torch.testing.assert_close(make()(inputs), expected, rtol=1e-4, atol=1e-6)


def test_proco():
    """Statistics and gradients agree in the first and second step."""
    case = proco.proco(CPU, "small", 100, 5, 32)
    names = ("ltfast", "eager", "published")
    assert [name for name in case.implementations if "compile" not in name] == [*names]
    steps = {name: case.implementations[name]() for name in names}
    seen = []
    for _ in range(2):
        inputs = case.inputs()
        ours = steps["ltfast"](inputs)[0]
        # the published series is short, and the published sums are in float32
        torch.testing.assert_close(steps["eager"](inputs)[0], ours, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(steps["published"](inputs)[0], ours, rtol=1e-3, atol=1e-5)
        seen.append(ours)
    assert not torch.equal(*seen)


def test_the_published_proco_only_where_its_tensors_fit():
    assert "published" in proco.proco(CPU, "imagenet-lt", *vmf.SIZES["imagenet-lt"]).implementations
    assert "published" not in proco.proco(CPU, "inat18", *vmf.SIZES["inat18"]).implementations


def test_vmf_cross_entropy():
    check(vmf.cross_entropy(CPU, "small", 9, 6, 32), "eager", rtol=1e-4, atol=1e-5)


def test_the_linear_classifier_has_a_loss_of_its_own():
    case = vmf.cross_entropy(CPU, "small", 9, 6, 32)
    features, labels, directions, _, log_prior = inputs = case.inputs()
    (gradient,) = case.implementations["linear + cross_entropy"]()(inputs)
    p = (features @ directions.T + log_prior).softmax(1) - F.one_hot(labels, 6)
    torch.testing.assert_close(gradient, p @ directions / 9)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("peer", "package"),
    [("liger fused linear", "liger_kernel"), ("cut-cross-entropy, bf16", "cut_cross_entropy")],
)
def test_peers_of_a_linear_classifier(peer, package):
    pytest.importorskip(package)
    case = vmf.cross_entropy(torch.device("cuda"), "small", 256, 100, 128)
    inputs = case.inputs()
    (expected,) = case.implementations["linear + cross_entropy"]()(inputs)
    torch.testing.assert_close(case.implementations[peer]()(inputs)[0], expected, rtol=0.02, atol=1e-4)


@pytest.mark.parametrize(("rows", "length"), [(3, 48), (4096, 64), (300, 7)])
def test_attention_to_split_keys_is_attention(rows, length):
    queries, keys = (queue_softmax.unit(n, 16, device=CPU, dtype=torch.float32) for n in (rows, length))
    lse, mean = queue_softmax.split_attention(partial(flash_attention, mask=None))(queries, keys)
    logits = queries @ keys.T / queue_softmax.TEMPERATURE
    torch.testing.assert_close(lse, logits.logsumexp(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mean, logits.softmax(1) @ keys, rtol=1e-4, atol=1e-5)


def test_attention_that_cannot_run_is_unavailable():
    def attend(queries, keys, temperature):
        raise RuntimeError("only half precision\nand more")

    with pytest.raises(Unavailable, match="only half precision"):
        queue_softmax.split_attention(attend)(torch.ones(2, 4), torch.ones(8, 4))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["flash", "cudnn", "efficient", "math"])
def test_attention_on_a_gpu(name):
    """Each backend gives ltfast's mean, and split keys give its log-sum-exp too."""
    case = queue_softmax.forward(torch.device("cuda"), "small", 256, 4096, 128, torch.bfloat16)
    inputs = case.inputs()
    lse, mean = case.implementations["ltfast"]()(inputs)
    torch.testing.assert_close(case.implementations[f"attention, {name}"]()(inputs), mean, rtol=0.05, atol=0.01)
    if name in queue_softmax.SPLIT["cuda"]:
        split_lse, split_mean = case.implementations[f"attention, {name}, split"]()(inputs)
        torch.testing.assert_close(split_lse.float(), lse.float(), rtol=0.01, atol=0.01)
        torch.testing.assert_close(split_mean.float(), mean.float(), rtol=0.05, atol=0.01)


@pytest.mark.parametrize("order", [0.5, 63.0])  # scipy's values underflow in more dimensions
@pytest.mark.parametrize("op", bessel.EXPS)
@pytest.mark.parametrize(
    ("peer", "package"), [("scipy", "scipy"), ("TensorFlow Probability", "tensorflow_probability")]
)
def test_bessel(op, order, peer, package):
    pytest.importorskip(package)
    case = bessel.case(CPU, op, "small", 200, order, torch.float64)
    x = case.inputs()
    ours, theirs = (case.implementations[name]()(x) for name in ("ltfast", peer))
    torch.testing.assert_close(theirs, ours, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_class_sums(dtype):
    check(class_sums.case(CPU, "small", 30, 7, 5, dtype), "index_add_", "one-hot", rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("module", [agcl, balanced_bce, cross_entropy])
def test_the_copy_moves_the_logits(module):
    case = module.case(CPU, "small", 4, 3, torch.float32)
    inputs = case.inputs()
    copied = case.implementations["copy"]()(inputs)
    assert torch.equal(copied, inputs[0])
    assert copied.data_ptr() != inputs[0].data_ptr()
    assert not copied.requires_grad
    assert case.work.bytes == 2 * copied.nbytes


def test_a_row_too_long_for_quack():
    with pytest.raises(Unavailable, match="does not fit"):
        agcl.quack_cross_entropy(4_000_000)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("peer", "package"), [("liger cross_entropy", "liger_kernel"), ("quack cross_entropy", "quack.cross_entropy")]
)
def test_cross_entropy_peers(peer, package):
    pytest.importorskip(package)
    case = agcl.case(torch.device("cuda"), "small", 16, 24, torch.float32)
    cosine, target = inputs = case.inputs()
    (expected,) = torch.autograd.grad(F.cross_entropy(cosine, target), cosine)
    torch.testing.assert_close(case.implementations[peer]()(inputs)[0], expected, rtol=1e-4, atol=1e-6)
