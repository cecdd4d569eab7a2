import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import ltfast
from ltfast.ops import bessel_ratio, log_iv, vmf_cross_entropy, vmf_logits
from ltfast.ops.bessel import debye
from ltfast.ops.vmf import blocks, reference, vmf_ratio_op
from ops.compare import loss_and_gradient, relative_error, row_error, tolerances

WIDTHS = [2, 3, 16, 17, 33, 128, 255, 1024, 4096]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def problem(rows, classes, width, dtype=torch.float32, device="cpu"):
    """Concentrations from 1e-2 to 1e5, and the extremes: 0, 1e5, features along and against a direction."""
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    features = F.normalize(torch.randn(rows, width, dtype=acc)).to(dtype)
    directions = F.normalize(torch.randn(classes, width, dtype=acc))
    kappa = 10 ** (torch.rand(classes, dtype=acc) * 7 - 2)
    for c, value in enumerate((0.0, 1e5, 10.0, 10.0)[:classes]):
        kappa[c] = value
    for c, sign in ((2, -1), (3, 1)):
        if c < classes:
            directions[c] = sign * F.normalize(features[0].to(acc), dim=0)  # half precision is not of length 1
    target, log_prior = torch.randint(classes, (rows,)), torch.randn(classes, dtype=acc)
    return [x.to(device) for x in (features, target, directions, kappa, log_prior)]


def check(place, features, target, directions, kappa, log_prior, incoming=None, **options):
    def loss(z):
        return vmf_cross_entropy(z, target, directions, kappa, log_prior=log_prior, **options)

    result, gradient = loss_and_gradient(loss, features, incoming)
    with ltfast.backend("reference"):
        expected, expected_gradient = loss_and_gradient(loss, features.double(), incoming)
    loss_tolerance, gradient_tolerance = tolerances(features.dtype)
    if features.dtype == torch.float64:
        loss_tolerance, gradient_tolerance = max(loss_tolerance, 3e-10), max(gradient_tolerance, 3e-10)
    temperature = options.get("temperature", 0.1)
    if features.shape[1] < 18:  # the logits of low orders are rounded more: see test_logits
        gradient_tolerance = max(gradient_tolerance, 3e-5 if result.dtype == torch.float32 else 0)
    loss_tolerance *= max(1, 0.1 / temperature)  # what float32 makes of a cosine, times 1 / temperature
    assert result.dtype == (torch.float64 if features.dtype == torch.float64 else torch.float32)
    assert gradient.dtype == features.dtype
    assert relative_error(result, expected) < loss_tolerance
    # a gradient is up to 2 / temperature long
    assert row_error(gradient.double() * temperature, expected_gradient * temperature) < gradient_tolerance


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_cross_entropy(place, width, dtype):
    check(place, *problem(3, 37, width, dtype, place.device))


@pytest.mark.parametrize("shape", [(1, 1, 2), (1, 5, 31), (5, 1, 31), (9, 16, 64), (2, 1031, 20)], ids=str)
@pytest.mark.parametrize("temperature", [0.01, 0.07, 1.0])
def test_shapes_and_temperatures(place, shape, temperature):
    rows, classes, width = shape
    check(place, *problem(place.rows(rows), classes, width, device=place.device), temperature=temperature)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_reductions(place, reduction, dtype):
    rows = place.rows(13)
    arguments = problem(rows, 21, 24, dtype, place.device)
    incoming = torch.rand(rows, device=place.device) + 0.5 if reduction == "none" else torch.tensor(1.7)
    check(place, *arguments, incoming=incoming, reduction=reduction)
    check(place, *arguments[:4], None, incoming=incoming, reduction=reduction)


@pytest.mark.parametrize("width", [4, 96])
# of a power of two and of another number of classes
@pytest.mark.parametrize("largest", [32, pytest.param(48, marks=pytest.mark.slow)])
def test_blocks_of_classes(place, width, largest, monkeypatch):
    monkeypatch.setitem(blocks.LARGEST, torch.float32, largest)
    for classes in (31, 32, 33, 64):
        check(place, *problem(3, classes, width, device=place.device))
    # labels in each block
    rows = place.rows(15)
    features, _, directions, kappa, log_prior = problem(rows, 101, width, device=place.device)
    check(place, features, torch.linspace(0, 100, rows, device=place.device).long(), directions, kappa, log_prior)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("width", [6, 100])
def test_every_instruction_set(native_isa, width, dtype):
    check(native_isa, *problem(9, 137, width, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_logits(place, width, dtype):
    features, _, directions, kappa, _ = problem(3, 37, width, dtype, place.device)
    logits = vmf_logits(features.requires_grad_(), directions, kappa)
    incoming = torch.randn_like(logits)
    (gradient,) = torch.autograd.grad(logits, features, incoming)
    exact = features.detach().double().requires_grad_()
    with ltfast.backend("reference"):
        expected = vmf_logits(exact, directions, kappa)
        (expected_gradient,) = torch.autograd.grad(expected, exact, incoming.double())
    wide = dtype == torch.float64 and place.backend == "native"
    assert relative_error(logits, expected) < (3e-10 if wide else 4e-6 if width > 17 else 1e-5)
    tolerance = {torch.float64: 1e-10 if wide else 1e-5, torch.float32: 1e-5, torch.bfloat16: 1e-2}.get(dtype, 1.5e-3)
    assert row_error(gradient, expected_gradient) < tolerance


@pytest.mark.parametrize("width", [2, 3, 17, 128, 1024])
def test_the_reference_against_fifty_digits(width):
    features, _, directions, kappa, _ = problem(3, 6, width, torch.float64)
    with ltfast.backend("reference"):
        logits = vmf_logits(features, directions, kappa)
    with mpmath.workdps(50):
        nu = mpmath.mpf(width) / 2 - 1

        def log_partition(k):
            if k == 0:
                return -nu * mpmath.log(2) - mpmath.loggamma(nu + 1)
            return mpmath.log(mpmath.besseli(nu, k, maxterms=10**6, maxprec=10**6)) - nu * mpmath.log(k)

        for z, row in zip(features.tolist(), logits.tolist(), strict=True):
            for mu, k, logit in zip(directions.tolist(), kappa.tolist(), row, strict=True):
                sums = [mpmath.mpf(k) * m + mpmath.mpf(x) / mpmath.mpf(0.1) for m, x in zip(mu, z, strict=True)]
                longer = mpmath.sqrt(mpmath.fsum(s * s for s in sums))
                # float64 loses what the difference of two log-partitions of 1e5 loses
                assert abs(logit - (log_partition(longer) - log_partition(mpmath.mpf(k)))) < 1e-9


def test_agrees_with_the_public_bessel_functions(place):
    features, _, directions, kappa, _ = problem(5, 7, 40, torch.float64, place.device)
    kappa = kappa.clamp(1, 1e3)
    nu = 19.0
    longer = (kappa[:, None] * directions + features[:, None] / 0.1).norm(dim=2)
    expected = log_iv(nu, longer) - nu * longer.log() - (log_iv(nu, kappa) - nu * kappa.log())
    torch.testing.assert_close(vmf_logits(features, directions, kappa), expected, rtol=1e-6, atol=1e-6)
    assert (bessel_ratio(nu, longer) < 1).all()


@pytest.mark.parametrize("width", [2, 64])
@pytest.mark.parametrize("temperature", [0.01, 0.1])
def test_extremes_are_finite(place, width, temperature):
    features = F.normalize(torch.randn(2, width, device=place.device))
    directions = torch.cat([features, -features]).repeat(5, 1)
    kappa = torch.tensor([0.0, 1e-30, 1.0, 1 / temperature, 1e35], device=place.device).repeat_interleave(4)
    targets = torch.tensor([[0, 1], [18, 11]], device=place.device)
    for scale in (0.0, 1e-20, 1.0, 100.0, 1e12, 1e20, 3e38):
        z = (features * scale).requires_grad_()
        results = [vmf_logits(z, directions, kappa, temperature=temperature)]
        results += [vmf_cross_entropy(z, target, directions, kappa, temperature=temperature) for target in targets]
        for result in results:
            assert result.isfinite().all()
            assert torch.autograd.grad(result.sum(), z)[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_features_near_the_largest_float(place, dtype):
    """Their products with the directions overflow."""
    largest = torch.finfo(dtype).max
    features = torch.full((4, 64), largest, dtype=dtype, device=place.device)
    features[1] *= torch.randn_like(features[1]).sign()
    features[2] = -largest
    features[3] = F.normalize(torch.randn_like(features[3]), dim=0)
    directions = F.normalize(torch.cat([features[:3].sign(), torch.randn_like(features[:2])]))
    kappa = torch.tensor([1.0, 10.0, 1e5, 0.0, 1e35], dtype=dtype, device=place.device)
    targets = torch.tensor([[0, 1, 2, 3], [4, 2, 0, 1]], device=place.device)
    features.requires_grad_()
    for target in targets:
        loss = vmf_cross_entropy(features, target, directions, kappa)
        assert loss.isfinite()
        assert torch.autograd.grad(loss, features)[0].isfinite().all()


@pytest.mark.parametrize("strength", [1e3, 1e6, 1e9])
def test_long_features(place, strength):
    """F(k') - F(k) is k' but for logarithms."""
    features = F.normalize(torch.randn(3, 20, device=place.device)) * strength
    directions, kappa = F.normalize(torch.randn(7, 20, device=place.device)), torch.ones(7, device=place.device)
    logits = vmf_logits(features, directions, kappa, temperature=0.1)
    torch.testing.assert_close(logits, torch.full_like(logits, strength / 0.1), rtol=0.03, atol=0)
    loss, gradient = loss_and_gradient(
        lambda z: vmf_cross_entropy(z, torch.tensor([0, 1, 2], device=z.device), directions, kappa), features
    )
    assert loss.isfinite()
    assert gradient.norm(dim=1).max() <= 2 / 0.1


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_row_stays_alone(place, value):
    features, target, directions, kappa, _ = problem(5, 9, 12, device=place.device)
    features[2, 3] = value
    loss, gradient = loss_and_gradient(
        lambda z: vmf_cross_entropy(z, target, directions, kappa, reduction="none"), features
    )
    logits = vmf_logits(features, directions, kappa)
    for result in (loss, gradient, logits):
        rows = result.reshape(5, -1).isfinite().all(1).tolist()
        assert rows == [True, True, False, True, True]
    assert loss[2].isnan()


@given(
    rows=st.integers(1, 9), classes=st.integers(1, 40), width=st.integers(2, 70),
    temperature=st.floats(0.02, 5), strength=st.floats(0, 1e5),
)  # fmt: skip
@settings(deadline=None)
def test_bounds(rows, classes, width, temperature, strength):
    """|logit| <= |z| / temperature, since 0 <= dF/dk < 1; the loss is over 0 without a prior; the gradient is short."""
    features, target, directions, _, _ = problem(rows, classes, width)
    kappa = torch.full((classes,), strength)
    logits = vmf_logits(features, directions, kappa, temperature=temperature)
    assert logits.abs().max() <= (1 + 1e-5) / temperature + 1e-5
    loss, gradient = loss_and_gradient(
        lambda z: vmf_cross_entropy(z, target, directions, kappa, temperature=temperature, reduction="sum"), features
    )
    assert loss >= -1e-4
    assert gradient.norm(dim=1).max() <= 2.001 / temperature


@pytest.mark.parametrize("first", [False, True])
def test_classes_left_out_by_their_prior(place, first, monkeypatch):
    monkeypatch.setitem(blocks.LARGEST, torch.float32, 16)
    features, _, directions, kappa, log_prior = problem(4, 40, 20, device=place.device)
    kept = torch.arange(16, 40, device=place.device) if first else torch.arange(0, 24, device=place.device)
    masked = torch.full_like(log_prior, -math.inf).index_copy(0, kept, log_prior[kept])
    target = torch.arange(4, device=place.device)
    loss, gradient = loss_and_gradient(
        lambda z: vmf_cross_entropy(z, kept[target], directions, kappa, log_prior=masked), features
    )
    expected, expected_gradient = loss_and_gradient(
        lambda z: vmf_cross_entropy(z, target, directions[kept], kappa[kept], log_prior=log_prior[kept]), features
    )
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-4)


def test_permuting_classes_changes_nothing(place):
    features, target, directions, kappa, log_prior = problem(6, 50, 30, device=place.device)
    order = torch.randperm(50, device=place.device)
    loss = vmf_cross_entropy(features, target, directions, kappa, log_prior=log_prior)
    position = order.argsort()
    again = vmf_cross_entropy(features, position[target], directions[order], kappa[order], log_prior=log_prior[order])
    torch.testing.assert_close(again, loss)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("width", [3, 34])
def test_gradcheck(backend, width):
    features, target, directions, kappa, log_prior = problem(2, 5, width, torch.float64)
    kappa = kappa.clamp(max=100)
    features = (features + 0.1).requires_grad_()
    with ltfast.backend(backend):
        for function in (
            lambda z: vmf_cross_entropy(z, target, directions, kappa, log_prior=log_prior, temperature=0.5),
            lambda z: vmf_logits(z, directions, kappa, temperature=0.5),
        ):
            assert torch.autograd.gradcheck(function, features)
            assert torch.autograd.gradgradcheck(function, features)


def test_non_contiguous_input(place):
    wide, target, directions, kappa, log_prior = problem(place.rows(11), 13, 60, device=place.device)
    for features, mu in ((wide[:, ::3], directions[:, ::3]), (wide[:, 7:41], directions[:, 7:41])):
        check(place, features, target, mu, kappa, log_prior)
    check(place, wide[::2], target[::2], directions, kappa.repeat(2)[:13], log_prior)
    check(place, wide, target.int(), directions.t().contiguous().t(), kappa, log_prior.double())


def test_opcheck():
    for width in (4, 50):
        features, target, directions, kappa, log_prior = problem(5, 7, width)
        features.requires_grad_()
        for reduction in ("mean", "none"):
            torch.library.opcheck(
                torch.ops.ltfast.vmf_cross_entropy.default,
                (features, target, directions, kappa, log_prior, 0.1, -100, reduction, True),
            )
        increments = torch.rand(5, 7, requires_grad=True)
        torch.library.opcheck(vmf_ratio_op, (increments, kappa, width / 2 - 1, True))


def test_torch_compile_of_logits():
    features, target, directions, kappa, _ = problem(5, 7, 30)
    model = torch.nn.Linear(30, 30)

    def step(x):
        return F.cross_entropy(vmf_logits(F.normalize(model(x)), directions, kappa), target)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(features), step(features))
    gradients = [torch.autograd.grad(f(features), model.weight)[0] for f in (compiled, step)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_torch_compile_of_any_temperature():
    features, target, directions, kappa, _ = problem(5, 7, 30)

    def loss(z, temperature):
        return vmf_cross_entropy(z, target, directions, kappa, temperature=temperature)

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for temperature in (0.1, 0.5):
        assert compiled(features, temperature) == loss(features, temperature)


def test_autocast_keeps_float32_products(place):
    features, target, directions, kappa, _ = problem(9, 21, 64, device=place.device)
    plain = vmf_logits(features, directions, kappa), vmf_cross_entropy(features, target, directions, kappa)
    with torch.autocast(place.device, torch.bfloat16):
        again = vmf_logits(features, directions, kappa), vmf_cross_entropy(features, target, directions, kappa)
    assert torch.equal(plain[0], again[0])
    assert torch.equal(plain[1], again[1])


def test_memory_does_not_hold_a_matrix_of_logits():
    for device in ("cpu", "cuda"):
        assert blocks.block_size(256, 1_000_000, 128, torch.float32, device) == 4096
        assert blocks.block_size(256, 1_000_000, 128, torch.float64, device) == 512
        assert blocks.block_size(65536, 1_000_000, 128, torch.float32, device) == 256
        assert blocks.block_size(8, 37, 128, torch.float32, device) == 48
    assert blocks.block_size(2048, 1_000_000, 128, torch.float32, "cpu") == 2048
    assert blocks.block_size(2048, 1_000_000, 128, torch.float32, "cuda") == 4096


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_bad_input(backend):
    features, target, directions, kappa, log_prior = problem(4, 6, 8)

    def refused(error, message, **changes):
        arguments = {"features": features, "target": target, "directions": directions, "kappa": kappa} | changes
        with ltfast.backend(backend), pytest.raises(error, match=message):
            vmf_cross_entropy(**arguments)
        if "target" not in changes and "log_prior" not in changes and "reduction" not in changes:
            arguments.pop("target")
            with ltfast.backend(backend), pytest.raises(error, match=message):
                vmf_logits(**arguments)

    refused(ValueError, r"features has shape \(8,\): expected \(batch, width\)", features=features[0])
    refused(ValueError, "expected a width of at least 2", features=features[:, :1], directions=directions[:, :1])
    refused(ValueError, r"directions has shape \(6, 7\): expected \(classes, 8\)", directions=directions[:, :7])
    refused(ValueError, r"kappa has shape \(5,\): expected \(6,\)", kappa=kappa[:5])
    refused(TypeError, r"kappa has dtype torch\.int64", kappa=kappa.long())
    refused(ValueError, "kappa requires a gradient", kappa=kappa.clone().requires_grad_())
    refused(ValueError, "directions requires a gradient", directions=directions.clone().requires_grad_())
    for temperature in (0.0, -1.0, math.nan):
        refused(ValueError, "temperature is .*: expected a number over 0", temperature=temperature)
    refused(ValueError, r"log_prior has shape \(5,\): expected \(6,\)", log_prior=log_prior[:5])
    refused(ValueError, "reduction is 'max'", reduction="max")
    refused(ValueError, r"target has shape \(3,\): expected \(4,\)", target=target[:3])
    refused(ValueError, r"target\[0\] is 6: expected a label in \[0, 6\)", target=torch.tensor([6, 0, 0, 0]))


@pytest.mark.parametrize("single", [False, True])
def test_the_terms_that_an_order_needs_are_enough(single):
    order, error = (debye.ORDER_SINGLE, debye.ERROR_SINGLE) if single else (debye.ORDER, debye.ERROR)
    for v in (order, 1.3 * order, 2 * order, 31.0, 63.0, 1023.0, 1e6):
        p, q = v**-1 * (t := torch.linspace(0, 1, 501, dtype=torch.float64)), t**2
        terms = [p**k * sum(c * q**i for i, c in enumerate(row)) for k, row in enumerate(debye.COEFFICIENTS, 1)]
        assert torch.stack([*terms, 0 * p])[debye.terms_from(v, single) :].sum(0).abs().max() < 2 * error


def test_reference_partition_is_smooth_at_zero():
    for nu in (0.0, 3.0, 20.0):
        square = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(reference.log_partition(nu, square), square)
        assert slope.item() == pytest.approx(1 / (4 * (nu + 1)), rel=1e-12)
