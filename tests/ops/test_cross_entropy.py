import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import ltfast
from ltfast.ops import cross_entropy
from ltfast.ops.cross_entropy.reference import LIMIT
from ops.compare import loss_and_gradient, opcheck, relative_error, row_error
from ops.conftest import NO_TRITON
from ops.logits import DTYPES, compare, problem

SHAPES = [(1, 1), (1, 2), (5, 1), (3, 7), (37, 101), (2, 1024), (9, 1031), (3, 9001), (2, 20_011)]


def soft_target(rows, classes, dtype=torch.float32, device="cpu"):
    return (2 * torch.randn(rows, classes, device=device)).softmax(1).to(dtype)


def plain(logits, target, bias=None, **options):
    """PyTorch's function in float64."""
    z = logits.double() if bias is None else logits.double() + bias.double()
    target = target.double() if target.is_floating_point() else target.long()
    weight = options.pop("weight", None)
    return F.cross_entropy(z, target, None if weight is None else weight.double(), **options)


def check(place, logits, target, bias=None, incoming=None, **options):
    compare(
        lambda x: cross_entropy(x, target, bias, **options),
        lambda x: plain(x, target, bias, **options),
        logits,
        incoming,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_labels(place, shape, dtype):
    rows, classes = shape
    logits, target, bias = problem(place.rows(rows), classes, dtype, place.device)
    check(place, logits, target)
    check(place, logits, target, bias)
    check(place, logits, target, bias, label_smoothing=0.1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_soft_targets(place, shape, dtype):
    rows, classes = shape
    logits, _, bias = problem(place.rows(rows), classes, dtype, place.device)
    check(place, logits, soft_target(*logits.shape, dtype, place.device), bias)
    check(place, logits, soft_target(*logits.shape, torch.float32, place.device), label_smoothing=0.1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_soft_targets_of_any_sum(place, dtype):
    logits, _, bias = problem(place.rows(7), 500, dtype, place.device)
    check(place, logits, torch.rand(logits.shape, device=place.device), bias)
    check(place, logits, torch.ones(logits.shape, device=place.device), bias)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_weights_and_reductions(place, reduction, dtype, label_smoothing):
    rows = place.rows(13)
    logits, target, bias = problem(rows, 67, dtype, place.device)
    incoming = torch.rand(rows, device=place.device) + 0.5 if reduction == "none" else torch.tensor(1.7)
    options = {"weight": torch.rand(67, device=place.device) * 3, "label_smoothing": label_smoothing}
    check(place, logits, target, bias, incoming, reduction=reduction, **options)
    target[1], target[3] = -100, 7
    check(place, logits, target, bias, incoming, reduction=reduction, **options)
    check(place, logits, target.where(target >= 0, 9), bias, incoming, ignore_index=7, reduction=reduction, **options)
    check(place, logits, soft_target(rows, 67, dtype, place.device), bias, incoming, reduction=reduction, **options)


def test_the_weighted_mean_divides_by_the_weights_of_the_labels(place):
    logits = torch.tensor([[1.0, 2, 3], [3, 2, 1], [0, 0, 0]], device=place.device)
    target = torch.tensor([0, 1, -100], device=place.device)
    weight = torch.tensor([1.0, 3, 100], device=place.device)
    each = cross_entropy(logits, target, reduction="none")
    torch.testing.assert_close(cross_entropy(logits, target, weight=weight), (each[0] + 3 * each[1]) / 4)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_a_mean_over_no_weight_is_nan(place, label_smoothing):
    logits, target, bias = problem(4, 9, device=place.device)
    weight = torch.ones(9, device=place.device)
    ignored = torch.full_like(target, -100)
    options = {"label_smoothing": label_smoothing}
    assert cross_entropy(logits, target, bias, weight=0 * weight, **options).isnan()
    assert cross_entropy(logits, ignored, bias, weight=weight, **options).isnan()
    assert cross_entropy(logits, ignored, bias, **options).isnan()


def test_large_weights_in_half_precision(place):
    logits, target, bias = problem(6, 40, torch.float16, place.device)
    check(place, logits, target, bias, weight=torch.full((40,), 1000.0, device=place.device), reduction="sum")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_instruction_set(native_isa, dtype):
    logits, target, bias = problem(5, 1031, dtype)
    check(native_isa, logits, target, bias)
    check(native_isa, logits, target, bias, label_smoothing=0.1, weight=torch.rand(1031))
    check(native_isa, logits, soft_target(5, 1031, dtype), bias)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.9}, {"weight": torch.full((4096,), 0.7)}], ids=str)
def test_equal_terms_keep_their_digits(native_isa, options):
    """A sum of equal numbers is rounded the same way each time."""
    depth = torch.linspace(1, 12, 500)[:, None]
    logits = -depth.repeat(1, 4096)
    logits[:, 0] = 0
    for target in (torch.ones(500).long(), torch.full((500, 4096), 1 / 4096)):
        check(native_isa, logits, target, reduction="none", **options)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 6),
    classes=st.integers(1, 70),
    data=st.integers(0, 2**31),
    spread=st.floats(0.01, 300),
    label_smoothing=st.sampled_from((0.0, 0.1, 0.7)),
    weighted=st.booleans(),
    reduction=st.sampled_from(("mean", "sum", "none")),
)
def test_it_is_cross_entropy(rows, classes, data, spread, label_smoothing, weighted, reduction):
    torch.manual_seed(data)
    logits, target, bias = problem(rows, classes, torch.float64)
    logits = logits * spread
    weight = torch.rand(classes) + 0.01 if weighted else None
    options = {"weight": weight, "label_smoothing": label_smoothing, "reduction": reduction}
    for y in (target, soft_target(rows, classes)):
        loss, gradient = loss_and_gradient(lambda x, y=y: cross_entropy(x, y, bias, **options), logits)
        expected, expected_gradient = loss_and_gradient(lambda x, y=y: plain(x, y, bias, **options), logits)
        torch.testing.assert_close(loss, expected, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-13)


def test_the_reference_is_pytorchs_function():
    logits, target, bias = problem(7, 12, torch.float64)
    weight = torch.rand(12)
    target[2] = -100
    for y in (target, soft_target(7, 12)):
        for label_smoothing in (0.0, 0.3):
            options = {"weight": weight, "label_smoothing": label_smoothing}
            with ltfast.backend("reference"):
                loss = cross_entropy(logits, y, bias, **options)
            torch.testing.assert_close(loss, plain(logits, y, bias, **options), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("backend", ["reference", "native", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("magnitude", [1e3, 1e15, 1e30, 3.38e38])
def test_finite_logits_give_finite_results(place, backend, magnitude, dtype):
    if backend not in ("reference", place.backend):
        pytest.skip("tested where it runs")
    logits = torch.tensor([[1.0, -1, 0, 0.5], [-1, 1, 1, 1], [0, 0, 0, 0], [-1, -1, -1, -1]], device=place.device)
    logits = (logits.repeat(1, 7000) * magnitude).to(dtype)[:, :27_999]  # several blocks in every kernel
    for wide in (logits, logits[:, :4]):
        bias = torch.tensor([-20.0, 20, 0, 1], device=place.device).repeat(7000)[: wide.shape[1]]
        for target in (torch.tensor([1, 0, 2, 3], device=place.device), wide.float() * 0 + 1 / wide.shape[1]):
            for options in ({}, {"reduction": "none"}, {"label_smoothing": 0.1}):
                with ltfast.backend(backend):
                    loss, gradient = loss_and_gradient(
                        lambda x, t=target, b=bias, o=options: cross_entropy(x, t, b, **o), wide
                    )
                assert loss.isfinite().all()
                assert gradient.isfinite().all()


def test_a_label_far_below_saturates(place):
    logits = torch.tensor([[3e38, -3e38, 0]], device=place.device)
    loss, gradient = loss_and_gradient(lambda x: cross_entropy(x, torch.tensor([1], device=place.device)), logits)
    assert loss.item() == pytest.approx(LIMIT)
    assert gradient.tolist() == [[1, -1, 0]]  # that of the unsaturated loss


def test_a_score_beyond_the_limit_counts_once(place):
    """Although the largest score of a row becomes larger in several of its blocks."""
    logits = torch.zeros(2, 30_000, device=place.device)
    logits[:, :10_000], logits[:, 20_000:] = -1e38, 1e38
    soft = torch.zeros_like(logits)
    soft[:, 5], soft[:, 15_000], soft[:, -1] = 0.25, 0.25, 0.5
    loss, gradient = loss_and_gradient(lambda x: cross_entropy(x, soft, reduction="none"), logits)
    torch.testing.assert_close(loss, torch.full_like(loss, 0.5 * LIMIT))
    torch.testing.assert_close(gradient, logits.softmax(1) - soft)


@pytest.mark.parametrize("classes", [5, 30_000])
def test_minus_infinity_excludes_a_class(place, classes):
    logits, target, bias = problem(4, classes, device=place.device)
    target = target % 3
    logits[:, 4:] = -math.inf
    target[0] = 4
    loss, gradient = loss_and_gradient(lambda x: cross_entropy(x, target, bias, reduction="none"), logits)
    expected, expected_gradient = loss_and_gradient(lambda x: plain(x, target, bias, reduction="none"), logits)
    assert loss[0] == expected[0] == math.inf
    assert relative_error(loss[1:], expected[1:]) < 2e-6
    assert row_error(gradient, expected_gradient) < 1e-5
    soft = F.pad(soft_target(4, 4, device=place.device), (0, classes - 4))
    loss, gradient = loss_and_gradient(lambda x: cross_entropy(x, soft, bias, reduction="none"), logits)
    few, few_gradient = loss_and_gradient(
        lambda x: cross_entropy(x, soft[:, :4], bias[:4], reduction="none"), logits[:, :4]
    )
    assert relative_error(loss, few) < 2e-6
    assert row_error(gradient[:, :4], few_gradient) < 1e-5
    assert not gradient[:, 4:].any()


@pytest.mark.parametrize("classes", [50, 30_000])
@pytest.mark.parametrize("bad", [math.nan, math.inf, "all -inf"])
def test_a_broken_row_stays_alone(place, bad, classes):
    logits, target, bias = problem(5, classes, device=place.device)
    broken = logits.clone()
    if bad == "all -inf":
        broken[2] = -math.inf
    else:
        broken[2, 7] = bad
    target[2] = 8
    for options in ({}, {"label_smoothing": 0.1}):

        def function(x, options=options):
            return cross_entropy(x, target, bias, reduction="none", **options)

        clean = loss_and_gradient(function, logits)
        loss, gradient = loss_and_gradient(function, broken)
        others = torch.tensor([0, 1, 3, 4], device=place.device)
        assert loss[2].isnan()
        assert gradient[2].isnan().all()
        assert torch.equal(loss[others], clean[0][others])
        assert torch.equal(gradient[others], clean[1][others])


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.2}, {"soft": True}], ids=str)
def test_gradcheck(backend, options):
    logits, target, bias = problem(4, 6, torch.float64)
    logits.requires_grad_()
    target = soft_target(4, 6, torch.float64) if options.get("soft") else target
    smoothing = options.get("label_smoothing", 0.0)
    weight = torch.rand(6)

    def loss(x):
        return cross_entropy(x, target, bias, weight=weight, label_smoothing=smoothing, reduction="none")

    with ltfast.backend(backend):
        assert torch.autograd.gradcheck(loss, logits)
        assert torch.autograd.gradgradcheck(loss, logits)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("soft", [False, True])
def test_opcheck(place, reduction, soft):
    logits, target, bias = problem(5, 12, device=place.device)
    target = soft_target(5, 12, device=place.device) if soft else target
    for with_gradient in (True, False):
        arguments = (logits.requires_grad_(with_gradient), target, bias, torch.rand_like(bias))
        options = (0.1, -100, reduction, with_gradient)
        opcheck(torch.ops.ltfast.cross_entropy.default, (*arguments, *options), rtol=1e-4, atol=1e-5)


BAD = [
    ({"logits": torch.rand(3)}, ValueError, "logits has shape"),
    ({"logits": torch.rand(2, 0)}, ValueError, "logits has shape"),
    ({"logits": torch.rand(2, 4).int()}, TypeError, "logits has dtype"),
    ({"target": torch.tensor([0, 4])}, ValueError, r"target\[1\] is 4"),
    ({"target": torch.tensor([0, 4]), "weight": torch.ones(4)}, ValueError, r"target\[1\] is 4"),
    ({"target": torch.tensor([-1, 0]), "weight": torch.ones(4)}, ValueError, r"target\[0\] is -1"),
    ({"target": torch.rand(2, 3)}, ValueError, "target has shape"),
    ({"target": torch.ones(2, 4).long()}, TypeError, "target has dtype"),
    ({"target": torch.rand(2, 4, requires_grad=True)}, ValueError, "target requires a gradient"),
    ({"target": None}, TypeError, "target is a NoneType"),
    ({"bias": torch.rand(3)}, ValueError, "bias has shape"),
    ({"bias": 0.0}, TypeError, "bias is a float"),
    ({"weight": torch.rand(2, 4)}, ValueError, "weight has shape"),
    ({"weight": torch.ones(4).long()}, TypeError, "weight has dtype"),
    ({"label_smoothing": None}, TypeError, "label_smoothing is None: expected a number"),
    ({"label_smoothing": 1.0}, ValueError, "label_smoothing is 1.0"),
    ({"ignore_index": None}, TypeError, "ignore_index is None"),
    ({"reduction": "median"}, ValueError, "reduction is 'median'"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD, ids=[message for *_, message in BAD])
@pytest.mark.parametrize("backend", ["reference", "native"])
def test_bad_input(backend, arguments, error, message):
    good = {"logits": torch.rand(2, 4), "target": torch.tensor([0, 3]), "bias": torch.rand(4)}
    with ltfast.backend(backend), pytest.raises(error, match=message):
        cross_entropy(**good | arguments)


@pytest.mark.skipif(NO_TRITON is not None, reason=str(NO_TRITON))
def test_launches():
    from ltfast.ops.core.launch import Chip
    from ltfast.ops.cross_entropy.launch import row_launch

    h200, mi300 = Chip("nvidia", 132), Chip("amd", 304)
    launches = [row_launch(classes, torch.float32, h200, True) for classes in (10, 1000, 8142, 8193)]
    assert [launch.block for launch in launches] == [16, 1024, 8192, 2048]
    assert [launch.one_block for launch in launches] == [True] * 3 + [False]
    assert [launch.num_warps for launch in launches] == [1, 1, 8, 2]
    assert row_launch(8142, torch.float32, h200, False).num_warps == 16
    assert row_launch(1000, torch.float32, mi300, True).maxnreg is None
