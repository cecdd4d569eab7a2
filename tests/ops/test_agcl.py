import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import ltfast
from ltfast.ops import agcl
from ltfast.ops.agcl import reference
from ltfast.ops.agcl.settings import AgclSettings
from ops.compare import loss_and_gradient, opcheck, relative_error, row_error, tolerances

SHAPES = [(1, 1), (1, 2), (5, 1), (3, 7), (37, 101), (2, 1024), (9, 1031), (2, 8192), (3, 9001)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
EXPONENTS = [(0.0, 4.0), (0.5, 8.0), (1.0, 0.0), (2.0, 1.0), (0.3, 1.7), (0.0, 2.0)]


def problem(rows, classes, dtype=torch.float32, device="cpu"):
    cosine = (torch.rand(rows, classes, dtype=torch.float64) * 2 - 1).to(dtype).to(device)
    return cosine, torch.randint(classes, (rows,), device=device), torch.rand(classes, device=device)


def run(cosine, target, class_noise, seed=0, incoming=None, **options):
    """The loss and its gradient with the noise of one seed, on the backend in force."""

    def loss(x):
        generator = torch.Generator(x.device).manual_seed(seed)
        return agcl(x, target, class_noise, generator=generator, **options)

    return loss_and_gradient(loss, cosine, incoming)


def expected(cosine, target, class_noise, seed=0, incoming=None, **options):
    with ltfast.backend("reference"):
        return run(cosine.double(), target, class_noise, seed, incoming, **options)


def check(place, cosine, target, class_noise, incoming=None, noise_error=0.0, **options):
    loss, gradient = run(cosine, target, class_noise, incoming=incoming, **options)
    reference_loss, reference_gradient = expected(cosine, target, class_noise, incoming=incoming, **options)
    loss_tolerance, gradient_tolerance = tolerances(cosine.dtype)
    assert loss.dtype == (torch.float64 if cosine.dtype == torch.float64 else torch.float32)
    assert gradient.dtype == cosine.dtype
    assert relative_error(loss, reference_loss) < loss_tolerance + noise_error
    assert row_error(gradient, reference_gradient) < gradient_tolerance + noise_error


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_loss_and_gradient(place, shape, dtype):
    rows, classes = shape
    cosine, target, class_noise = problem(place.rows(rows), classes, dtype, place.device)
    # The noise of the backends differs by up to 2e-7 (the last bits of log), which the scale of 20 multiplies.
    noise_error = 4e-6
    check(place, cosine, target, class_noise, noise_error=noise_error, weight_neg=0.1)
    check(place, cosine, target, None, weight_neg=0.1)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("exponents", EXPONENTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_exponents_and_reductions(place, exponents, reduction, dtype):
    rows = place.rows(13)
    cosine, target, _ = problem(rows, 67, dtype, place.device)
    gamma_pos, gamma_neg = exponents
    incoming = torch.rand(rows, device=place.device) + 0.5 if reduction == "none" else torch.tensor(1.7)
    options = {"gamma_pos": gamma_pos, "gamma_neg": gamma_neg, "reduction": reduction}
    check(place, cosine, target, None, incoming, weight_pos=0.9, weight_neg=0.01, margin=0.3, scale=7.0, **options)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("classes", [16, 67, 9001])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_class_weights(place, classes, reduction, dtype):
    rows = place.rows(7)
    cosine, target, class_noise = problem(rows, classes, dtype, place.device)
    target[1] = -100
    weight = torch.rand(classes, device=place.device)
    weight[target[0]] = 0
    incoming = torch.rand(rows, device=place.device) + 0.5 if reduction == "none" else torch.tensor(1.7)
    for gammas in ({}, {"gamma_pos": 0.5, "gamma_neg": 1.3}, {"gamma_neg": 0.0}):
        options = {"reduction": reduction, "weight": weight, "weight_pos": 0.9, "weight_neg": 0.1, **gammas}
        check(place, cosine, target, class_noise, incoming, noise_error=4e-6, **options)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_with_class_weights_and_smoothing_it_is_cross_entropy(place, smoothing, reduction):
    classes = 21
    logits, target, _ = problem(5, classes, torch.float64, place.device)
    target[2] = -100
    weight = torch.rand(classes, dtype=torch.float64, device=place.device)
    options = {"weight": weight, "reduction": reduction}
    incoming = torch.rand(5, dtype=torch.float64, device=place.device) if reduction == "none" else None
    share = {"weight_pos": 1 - smoothing + smoothing / classes, "weight_neg": smoothing / classes}
    loss, gradient = run(
        logits, target, None, incoming=incoming, scale=1.0, margin=0.0, gamma_neg=0.0, **share, **options
    )
    expected_loss, expected_gradient = loss_and_gradient(
        lambda x: F.cross_entropy(x, target, label_smoothing=smoothing, **options), logits, incoming
    )
    torch.testing.assert_close(loss, expected_loss, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-12)


def test_a_million_classes(place):
    cosine, target, class_noise = problem(2, 100_003 if place.interpreted else 1_000_003, device=place.device)
    check(place, cosine, target, class_noise, noise_error=4e-6, weight_neg=1e-3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_instruction_set(native_isa, dtype):
    cosine, target, class_noise = problem(5, 1031, dtype)
    check(native_isa, cosine, target, class_noise, noise_error=4e-6)
    check(native_isa, cosine, target, None, gamma_neg=1.7, gamma_pos=0.5)
    check(native_isa, cosine, target, None, weight=torch.rand(1031))


def test_non_contiguous_logits(place):
    wide, target, _ = problem(11, 60, device=place.device)
    for cosine in (wide[:, ::3], wide[:, 7:41], wide.t()[:11], wide[:1].expand(11, -1)):
        labels = target % cosine.shape[1]
        check(place, cosine, labels, None)


@pytest.mark.parametrize("classes", [16, 17, 18, 20, 24])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_alignments(place, classes, dtype):
    for columns in (24, 25, 26, 28, 32):  # rows that begin at multiples of 1, 2, 4 or 8 columns
        wide, target, _ = problem(5, columns, dtype, place.device)
        check(place, wide[:, :classes], target % classes, None)
        check(place, wide[:, 1 : 1 + classes], target % min(classes, columns - 1), None)


def test_one_seed_gives_one_noise_on_every_backend(place):
    inputs = (*problem(6, 333), torch.rand(333), torch.tensor([123456789012345]))
    options = AgclSettings(20.0, 0.1, 0.9, 0.1, 0.0, 4.0, -100, "none")
    loss, _ = torch.ops.ltfast.agcl(*(x.to(place.device) for x in inputs), *options, False)
    torch.testing.assert_close(loss.cpu(), reference.agcl(*inputs, options), rtol=4e-6, atol=0)


def test_noise_follows_the_generators(place):
    cosine, target, class_noise = problem(4, 50, device=place.device)
    torch.manual_seed(5)
    first, second = agcl(cosine, target, class_noise), agcl(cosine, target, class_noise)
    torch.manual_seed(5)
    assert first == agcl(cosine, target, class_noise)
    assert first != second
    assert run(cosine, target, class_noise, seed=9)[0] == run(cosine, target, class_noise, seed=9)[0]


def test_the_same_seed_gives_the_same_bits(place):
    cosine, target, class_noise = problem(place.rows(33), 1500, device=place.device)
    runs = [run(cosine, target, class_noise, seed=1) for _ in range(3)]
    for loss, gradient in runs[1:]:
        assert torch.equal(loss, runs[0][0])
        assert torch.equal(gradient, runs[0][1])


@pytest.mark.parametrize("magnitude", [1e4, 1e15, 1e30, 3.4e38])
@pytest.mark.parametrize("exponents", EXPONENTS, ids=str)
def test_finite_logits_give_finite_results(place, magnitude, exponents):
    gamma_pos, gamma_neg = exponents
    cosine = torch.tensor([[1.0, -1, 0, 0.5], [-1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]], device=place.device)
    target = torch.arange(4, device=place.device)
    noise = torch.ones(4, device=place.device)
    for reduction in ("mean", "none"):
        loss, gradient = run(
            cosine * magnitude, target, noise, gamma_pos=gamma_pos, gamma_neg=gamma_neg, reduction=reduction
        )
        assert loss.isfinite().all()
        assert gradient.isfinite().all()


def test_finite_logits_give_finite_results_over_blocks(place):
    cosine = torch.full((3, 9001), -3.4e38, device=place.device)
    cosine[1, 4000:] = 3.4e38
    cosine[2] = torch.linspace(-1, 1, 9001) * 3.4e38
    loss, gradient = run(cosine, torch.tensor([0, 1, 2], device=place.device), None, reduction="none")
    assert loss.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("gamma_neg", [0.0, 0.5, 4.0])
def test_classes_whose_difference_saturates_are_left_out(place, dtype, gamma_neg):
    lowest = torch.finfo(dtype).min
    cosine = torch.tensor([[lowest, 0.3, 0.5]], dtype=dtype, device=place.device)
    target = torch.tensor([1], device=place.device)
    loss, gradient = run(cosine, target, None, gamma_neg=gamma_neg)
    expected, expected_gradient = run(cosine[:, 1:].contiguous(), target - 1, None, gamma_neg=gamma_neg)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, torch.nn.functional.pad(expected_gradient, (1, 0)))


@pytest.mark.parametrize("gamma_pos", [0.0, 0.25, 0.5, 1.0])
def test_a_certain_prediction_costs_nothing(place, gamma_pos):
    # The published code gives NaN here for 0 < gamma_pos < 1.
    cosine = torch.tensor([[100.0, -100, -100]], device=place.device)
    loss, gradient = run(cosine, torch.tensor([0], device=place.device), None, gamma_pos=gamma_pos)
    assert loss == 0
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("classes", [50, 9001])
def test_a_broken_row_stays_alone(place, bad, classes):
    cosine, target, class_noise = problem(5, classes, device=place.device)
    clean_loss, clean_gradient = run(cosine, target, class_noise, seed=2, reduction="none")
    broken = cosine.clone()
    broken[2, classes // 2] = bad
    loss, gradient = run(broken, target, class_noise, seed=2, reduction="none")
    others = torch.tensor([0, 1, 3, 4], device=place.device)
    assert loss[2].isnan()
    assert gradient[2].isnan().all()
    assert torch.equal(loss[others], clean_loss[others])
    assert torch.equal(gradient[others], clean_gradient[others])


def test_a_masked_class_has_no_part(place):
    cosine, target, _ = problem(6, 9, device=place.device)
    target = target % 8
    masked = cosine.clone()
    masked[:, 8] = -math.inf
    loss, gradient = run(masked, target, None)
    loss_without, gradient_without = run(cosine[:, :8], target, None)
    torch.testing.assert_close(loss, loss_without)
    torch.testing.assert_close(gradient[:, :8], gradient_without)
    assert torch.equal(gradient[:, 8], torch.zeros_like(gradient[:, 8]))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 6),
    classes=st.integers(1, 70),
    scale=st.floats(0.1, 50),
    shift=st.floats(-3, 3),
    data=st.integers(0, 2**31),
)
def test_without_weights_and_noise_it_is_cross_entropy(rows, classes, scale, shift, data):
    torch.manual_seed(data)
    cosine, target, _ = problem(rows, classes, torch.float64)
    loss, gradient = run(cosine + shift, target, None, scale=scale, margin=0.0, weight_neg=0.0)
    reference, reference_gradient = loss_and_gradient(lambda x: F.cross_entropy(scale * x, target), cosine)
    torch.testing.assert_close(loss, reference, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(gradient, reference_gradient, rtol=1e-9, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(data=st.integers(0, 2**31), gamma_pos=st.floats(0, 4), gamma_neg=st.floats(0, 9))
def test_shifting_a_row_changes_nothing(data, gamma_pos, gamma_neg):
    torch.manual_seed(data)
    cosine, target, _ = problem(4, 30, torch.float64)
    options = {"gamma_pos": gamma_pos, "gamma_neg": gamma_neg, "reduction": "none"}
    loss, gradient = run(cosine, target, None, **options)
    shifted, shifted_gradient = run(cosine + torch.randn(4, 1), target, None, **options)
    torch.testing.assert_close(loss, shifted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradient, shifted_gradient, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(gradient.sum(1), torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-9)


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("exponents", EXPONENTS, ids=str)
def test_gradcheck(backend, exponents):
    gamma_pos, gamma_neg = exponents
    cosine, target, class_noise = problem(3, 5, torch.float64)
    cosine.requires_grad_()

    def loss(x):
        options = {"gamma_pos": gamma_pos, "gamma_neg": gamma_neg, "scale": 3.0, "reduction": "none"}
        return agcl(x, target, class_noise, generator=torch.Generator().manual_seed(0), **options)

    with ltfast.backend(backend):
        assert torch.autograd.gradcheck(loss, cosine, fast_mode=False)
        assert torch.autograd.gradgradcheck(loss, cosine)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)], ids=str)
def test_opcheck(place, reduction, dtype):
    cosine, target, class_noise = problem(5, 12, dtype, place.device)
    seed = torch.tensor([3], device=place.device)
    for noise in (None, class_noise):
        for with_gradient in (True, False):
            weight = None if noise is None else torch.rand_like(noise)
            arguments = (cosine.requires_grad_(with_gradient), target, noise, weight, None if noise is None else seed)
            options = (20.0, 0.1, 0.9, 0.1, 0.5, 4.0, -100, reduction, 0, with_gradient)
            opcheck(torch.ops.ltfast.agcl.default, (*arguments, *options), rtol=1e-2, atol=1e-3)


BAD = [
    ({"cosine": torch.rand(3)}, ValueError, "cosine has shape"),
    ({"cosine": torch.rand(2, 0)}, ValueError, "cosine has shape"),
    ({"cosine": torch.rand(2, 4).int()}, TypeError, "cosine has dtype"),
    ({"cosine": [[1.0]]}, TypeError, "cosine is a list"),
    ({"target": torch.tensor([0, 4])}, ValueError, r"target\[1\] is 4: expected a label in \[0, 4\)"),
    ({"target": torch.tensor([-1, 0])}, ValueError, r"target\[0\] is -1"),
    ({"target": torch.tensor([0])}, ValueError, "target has shape"),
    ({"target": torch.rand(2)}, TypeError, "target has dtype"),
    ({"target": [0, 1]}, TypeError, "target is a list"),
    ({"target": torch.zeros(2, device="meta").long()}, ValueError, "target is on meta"),
    ({"class_noise": torch.rand(3)}, ValueError, "class_noise has shape"),
    ({"class_noise": torch.rand(4, device="meta")}, ValueError, "class_noise is on meta"),
    ({"weight": torch.rand(3)}, ValueError, "weight has shape"),
    ({"weight": [1.0] * 4}, TypeError, "weight is a list"),
    ({"scale": 0.0}, ValueError, "scale is 0.0"),
    ({"scale": math.nan}, ValueError, "scale is nan"),
    ({"gamma_neg": -1.0}, ValueError, "gamma_neg is -1.0: expected a finite number of 0 or more"),
    ({"gamma_pos": math.inf}, ValueError, "gamma_pos is inf"),
    ({"margin": math.nan}, ValueError, "margin is nan: expected a finite number"),
    ({"weight_pos": math.inf}, ValueError, "weight_pos is inf"),
    ({"class_noise": torch.ones(4).long()}, TypeError, "class_noise has dtype"),
    ({"scale": None}, TypeError, "scale is None: expected a number"),
    ({"gamma_neg": "4"}, TypeError, "gamma_neg is '4': expected a number"),
    ({"reduction": "median"}, ValueError, "reduction is 'median'"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD, ids=[message for *_, message in BAD])
@pytest.mark.parametrize("backend", ["reference", "native"])
def test_bad_input(backend, arguments, error, message):
    good = {"cosine": torch.rand(2, 4), "target": torch.tensor([0, 3]), "class_noise": torch.rand(4)}
    with ltfast.backend(backend), pytest.raises(error, match=message):
        agcl(**good | arguments)


def test_a_label_out_of_range_breaks_its_row_alone_in_triton(place):
    if place.backend == "native":
        pytest.skip("raises there: test_bad_input")
    cosine, target, _ = problem(3, 8, device=place.device)
    target[1] = 8
    loss, gradient = run(cosine, target, None, reduction="none")
    assert loss.isnan().tolist() == [False, True, False]
    assert gradient.isnan().any(1).tolist() == [False, True, False]
