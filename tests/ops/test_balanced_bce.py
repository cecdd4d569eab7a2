import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import ltfast
from ltfast.ops import balanced_bce
from ops.compare import GRADIENT_TOLERANCE, LOSS_TOLERANCE, loss_and_gradient, opcheck
from ops.conftest import NO_TRITON
from ops.logits import DTYPES, compare, problem

if NO_TRITON is None:
    import triton
    import triton.language as tl

    from ltfast.ops.balanced_bce.triton import _log1p

    @triton.jit
    def log1p_kernel(x, out, BLOCK: tl.constexpr):
        i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        tl.store(out + i, _log1p(tl.load(x + i)))


SHAPES = [(1, 1), (1, 2), (5, 1), (3, 7), (37, 101), (2, 1024), (9, 1031), (3, 9001)]


def soft_target(rows, classes, dtype=torch.float32, device="cpu"):
    return torch.rand(rows, classes, device=device).to(dtype)


def check(place, logits, target, bias, incoming=None, **options):
    def fused(x):
        return balanced_bce(x, target, bias, **options)

    compare(fused, ltfast.backend("reference")(fused), logits, incoming)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_labels(place, shape, dtype):
    rows, classes = shape
    logits, target, bias = problem(place.rows(rows), classes, dtype, place.device)
    check(place, logits, target, bias)
    check(place, logits, target, bias, label_smoothing=0.1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_soft_targets(place, shape, dtype):
    rows, classes = shape
    logits, _, bias = problem(place.rows(rows), classes, dtype, place.device)
    check(place, logits, soft_target(*logits.shape, dtype, place.device), bias)
    soft = soft_target(*logits.shape, torch.float32, place.device)
    check(place, logits, soft, bias, target_threshold=0.4)
    check(place, logits, soft, bias, label_smoothing=0.3)
    check(place, logits, soft, bias, label_smoothing=0.3, target_threshold=0.4)


@pytest.mark.parametrize("threshold", [None, 0.4])
def test_soft_targets_are_smoothed_like_those_of_cross_entropy(place, threshold):
    logits, _, bias = problem(5, 11, torch.float64, place.device)
    target = soft_target(5, 11, torch.float64, place.device)
    smoothed = 0.8 * target + 0.2 / 11
    loss = balanced_bce(logits, target, bias, label_smoothing=0.2, target_threshold=threshold)
    expected = balanced_bce(logits, smoothed, bias, target_threshold=threshold)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(F.cross_entropy(logits, target, label_smoothing=0.2), F.cross_entropy(logits, smoothed))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("vectors", [("weight",), ("pos_weight",), ("weight", "pos_weight")], ids=str)
def test_weights_and_reductions(place, reduction, dtype, vectors):
    rows = place.rows(13)
    logits, target, bias = problem(rows, 67, dtype, place.device)
    incoming = torch.rand(rows, device=place.device) + 0.5 if reduction == "none" else torch.tensor(1.7)
    weights = {name: torch.rand(67, device=place.device) * 3 for name in vectors}
    check(place, logits, target, bias, incoming, reduction=reduction, label_smoothing=0.2, **weights)
    soft = soft_target(rows, 67, dtype, place.device)
    check(place, logits, soft, bias, incoming, reduction=reduction, **weights)


def test_large_weights_in_half_precision(place):
    logits, target, bias = problem(6, 40, torch.float16, place.device)
    check(place, logits, target, bias, pos_weight=torch.full((40,), 1000.0, device=place.device), reduction="sum")


@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.5, 0.95])
def test_threshold_after_smoothing(place, threshold):
    logits, target, bias = problem(4, 11, device=place.device)
    check(place, logits, target, bias, label_smoothing=0.3, target_threshold=threshold)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_instruction_set(native_isa, dtype):
    logits, target, bias = problem(5, 1031, dtype)
    check(native_isa, logits, target, bias, label_smoothing=0.1, weight=torch.rand(1031))
    check(native_isa, logits, soft_target(5, 1031, dtype), bias, label_smoothing=0.1)


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 6), classes=st.integers(1, 70), data=st.integers(0, 2**31), spread=st.floats(0.01, 300))
def test_it_is_binary_cross_entropy(rows, classes, data, spread):
    torch.manual_seed(data)
    logits, target, bias = problem(rows, classes, torch.float64)
    logits = logits * spread
    hot = F.one_hot(target, classes).double()
    loss, gradient = loss_and_gradient(lambda x: balanced_bce(x, target, bias), logits)

    def plain(x):
        return classes * F.binary_cross_entropy_with_logits(x + bias, hot)

    reference, reference_gradient = loss_and_gradient(plain, logits)
    torch.testing.assert_close(loss, reference, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(gradient, reference_gradient, rtol=1e-9, atol=1e-13)


def test_small_targets_of_many_classes(place):
    """In every class (1 - t) z and softplus(-z) cancel but for t z, in the same way."""
    classes = 8142
    logits = torch.randn(4, classes, device=place.device) * 2 - 15
    target = torch.randint(classes, (4,), device=place.device)
    check(place, logits, target, torch.zeros(classes, device=place.device), label_smoothing=0.1, reduction="none",
          incoming=torch.ones(4, device=place.device))  # fmt: skip


@pytest.mark.parametrize("magnitude", [1e3, 1e15, 1e30, 3.4e38])
def test_finite_logits_give_finite_results(place, magnitude):
    logits = torch.tensor([[1.0, -1, 0, 0.5], [-1, 1, 1, 1], [0, 0, 0, 0], [-1, -1, -1, -1]], device=place.device)
    bias = torch.tensor([-20.0, 20, 0, 1], device=place.device)
    for target in (torch.arange(4, device=place.device), torch.full((4, 4), 0.5, device=place.device)):
        for reduction in ("mean", "none"):
            loss, gradient = loss_and_gradient(
                lambda x, t=target, r=reduction: balanced_bce(x, t, bias, reduction=r), logits * magnitude
            )
            assert loss.isfinite().all()
            assert gradient.isfinite().all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_broken_row_stays_alone(place, bad):
    logits, target, bias = problem(5, 50, device=place.device)
    broken = logits.clone()
    broken[2, 7] = bad
    target[2] = 8
    clean = loss_and_gradient(lambda x: balanced_bce(x, target, bias, reduction="none"), logits)
    loss, gradient = loss_and_gradient(lambda x: balanced_bce(x, target, bias, reduction="none"), broken)
    others = torch.tensor([0, 1, 3, 4], device=place.device)
    assert loss[2].isnan()
    assert gradient[2, 7].isnan()
    assert torch.equal(loss[others], clean[0][others])
    assert torch.equal(gradient[others], clean[1][others])


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("soft", [False, True])
def test_gradcheck(backend, soft):
    logits, target, bias = problem(4, 6, torch.float64)
    logits.requires_grad_()
    target = soft_target(4, 6, torch.float64) if soft else target
    weight, pos_weight = torch.rand(6), torch.rand(6) * 4

    def loss(x):
        return balanced_bce(x, target, bias, weight=weight, pos_weight=pos_weight, reduction="none")

    with ltfast.backend(backend):
        assert torch.autograd.gradcheck(loss, logits)
        assert torch.autograd.gradgradcheck(loss, logits)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("soft", [False, True])
def test_opcheck(place, reduction, soft):
    logits, target, bias = problem(5, 12, device=place.device)
    target = soft_target(5, 12, device=place.device) if soft else target
    for with_gradient in (True, False):
        arguments = (logits.requires_grad_(with_gradient), target, bias, torch.rand_like(bias), None)
        options = (0.1, None, -100, reduction, with_gradient)
        opcheck(torch.ops.ltfast.balanced_bce.default, (*arguments, *options), rtol=1e-4, atol=1e-5)


BAD = [
    ({"logits": torch.rand(3)}, ValueError, "logits has shape"),
    ({"logits": torch.rand(2, 0)}, ValueError, "logits has shape"),
    ({"logits": torch.rand(2, 4).int()}, TypeError, "logits has dtype"),
    ({"target": torch.tensor([0, 4])}, ValueError, r"target\[1\] is 4"),
    ({"target": torch.rand(2, 3)}, ValueError, "target has shape"),
    ({"target": torch.ones(2, 4).long()}, TypeError, "target has dtype"),
    ({"target": torch.rand(2, 4, requires_grad=True)}, ValueError, "target requires a gradient"),
    ({"target": None}, TypeError, "target is a NoneType"),
    ({"bias": torch.rand(3)}, ValueError, "bias has shape"),
    ({"bias": 0.0}, TypeError, "bias is a float"),
    ({"weight": torch.rand(2, 4)}, ValueError, "weight has shape"),
    ({"pos_weight": torch.rand(1)}, ValueError, "pos_weight has shape"),
    ({"weight": torch.ones(4).long()}, TypeError, "weight has dtype"),
    ({"label_smoothing": None}, TypeError, "label_smoothing is None: expected a number"),
    ({"target_threshold": "x"}, TypeError, "target_threshold is 'x': expected a number"),
    ({"target_threshold": math.nan}, ValueError, "target_threshold is nan"),
    ({"label_smoothing": 1.0}, ValueError, "label_smoothing is 1.0"),
    ({"reduction": "median"}, ValueError, "reduction is 'median'"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD, ids=[message for *_, message in BAD])
@pytest.mark.parametrize("backend", ["reference", "native"])
def test_bad_input(backend, arguments, error, message):
    good = {"logits": torch.rand(2, 4), "target": torch.tensor([0, 3]), "bias": torch.rand(4)}
    with ltfast.backend(backend), pytest.raises(error, match=message):
        balanced_bce(**good | arguments)


@pytest.mark.skipif(NO_TRITON is not None, reason=str(NO_TRITON))
@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_polynomial_of_the_logarithm(device):
    small = torch.logspace(-37, 0, 2**14, dtype=torch.float64)
    for dtype, tolerance in ((torch.float32, 4e-7), (torch.float64, 1e-15)):
        e = torch.cat((torch.linspace(0, 1, 3 * 2**14, dtype=torch.float64), small)).to(device, dtype)
        out = torch.empty_like(e)
        log1p_kernel[(len(e) // 1024,)](e, out, BLOCK=1024)
        exact = e.double().log1p()
        assert ((out.double() - exact).abs() <= tolerance * exact).all()


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_approximations_of_a_gpu_are_exact_enough(sign):
    """With the largest errors that NVIDIA documents: relatively 2^-22 (exponential) and 2^-23 (reciprocal)."""
    z = torch.linspace(0, 120, 100_001)  # the kernel computes with |z|
    e = torch.exp2(z * -1.4426950408889634) * (1 + sign * 2**-22)
    sigmoid = e * (1 / (1 + e) * (1 + sign * 2**-23))
    exact = z.double()
    assert (e.double().log1p() - exact.neg().exp().log1p()).abs().max() < LOSS_TOLERANCE[torch.float32] / 4
    error = (sigmoid.double() - exact.neg().sigmoid()).abs() / exact.neg().sigmoid()
    assert error[z < 20].max() < GRADIENT_TOLERANCE[torch.float32] / 4  # beyond, the gradient is below 2e-9
    assert (sigmoid.double() - exact.neg().sigmoid()).abs().max() < 1e-6


@pytest.mark.skipif(NO_TRITON is not None, reason=str(NO_TRITON))
def test_launches():
    from ltfast.ops.balanced_bce.launch import row_launch
    from ltfast.ops.core.launch import Chip

    h200, mi300 = Chip("nvidia", 132), Chip("amd", 304)
    sizes = ((256, 10), (256, 8142), (1024, 8142), (16384, 8142), (16384, 100))
    # labels, and no weights
    launches = [row_launch(*size, torch.float32, h200, True) for size in sizes]
    assert [launch.num_warps for launch in launches] == [1, 8, 4, 2, 1]  # fewer where the rows fill the chip
    assert [launch.block for launch in launches] == [16, 2048, 1024, 512, 128]
    assert {launch.maxnreg for launch in launches} == {48}
    assert row_launch(256, 1000, torch.float32, mi300, True).maxnreg is None


@pytest.mark.skipif(NO_TRITON is not None, reason=str(NO_TRITON))
def test_the_widest_aligned_access():
    from ltfast.ops.core.launch import vector_width

    assert vector_width(torch.float32, 1000, 1000) == 4
    assert vector_width(torch.bfloat16, 1000, 1000) == 8
    assert vector_width(torch.bfloat16, 8142, 8142) == 2
    assert vector_width(torch.float32, 1000, 1001) == 1
    assert vector_width(torch.float64, 1000, 0) == 2  # an expanded row
