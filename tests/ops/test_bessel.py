import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ltfast
from ltfast.ops import bessel_ratio, log_iv
from ltfast.ops.bessel import bessel_ratio_grad_op, bessel_ratio_op, debye, log_iv_op

ORDERS = [0.0, 0.5, 1.0, 3.7, 7.0, 15.9, 16.0, 63.0, 127.5, 511.0, 2047.0, 5000.0]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-7}


def exact(nu, x):
    """log I_nu(x) and I_{nu+1}(x) / I_nu(x) to 50 digits."""
    with mpmath.workdps(60):
        nu, x = mpmath.mpf(nu), mpmath.mpf(x)
        own, following = (mpmath.besseli(order, x, maxterms=10**6, maxprec=10**6) for order in (nu, nu + 1))
        return mpmath.log(own), following / own


def arguments(nu, dtype):
    """Values from 1e-3 to 1e8, and some about the zero of log I_nu."""
    decades = [low for low in range(-3, 8) if nu < 1000 or low not in (4, 5)]  # there mpmath takes minutes
    x = [10 ** np.random.default_rng().uniform(low, low + 1) for low in decades]
    x += [nu * z for z in (0.31, 0.6, 0.6627, 0.66274341934918, 0.7, 1.29)] if nu else []
    return torch.tensor(x, dtype=dtype)


@pytest.fixture(params=[torch.float64, torch.float32], ids=str)
def dtype(request):
    return request.param


@pytest.mark.parametrize("nu", ORDERS)
def test_against_fifty_digits(place, nu, dtype):
    x = arguments(nu, dtype)
    logarithms, ratios = (f(nu, x.to(place.device)).tolist() for f in (log_iv, bessel_ratio))
    for value, logarithm, ratio in zip(x.tolist(), logarithms, ratios, strict=True):
        exact_logarithm, exact_ratio = exact(nu, value)
        error = abs(logarithm - exact_logarithm) / max(1, abs(exact_logarithm))
        assert error < TOLERANCE[dtype], f"log_iv({nu}, {value!r}): {error}"
        error = abs(ratio / exact_ratio - 1)
        assert error < TOLERANCE[dtype], f"bessel_ratio({nu}, {value!r}): {error}"


# Subnormal, tiny, about 1, large, where squares overflow, and the largest.
ENDS = {
    torch.float64: [5e-324, 1e-310, 2.3e-308, 1e-200, 1e-30, 0.3, 4.0, 1e10, 1e100, 1e154, 2e155, 1e300, 1.7e308],
    torch.float32: [1e-45, 1e-40, 1.2e-38, 1e-20, 0.3, 4.0, 1e10, 1e20, 3e38],
}


def exact_at_the_ends(nu, x):
    """log I_nu(x), A = I_{nu+1}(x) / I_nu(x), A' and the logarithm's derivative."""
    with mpmath.workdps(60):
        nu, x = mpmath.mpf(nu), mpmath.mpf(x)
        s = mpmath.hypot(nu, x)
        if s < 1e8:
            following, own = mpmath.besseli(nu + 1, x), mpmath.besseli(nu, x)
            logarithm, ratio = mpmath.log(own), following / own
            slope = 1 - ratio**2 - (2 * nu + 1) * ratio / x
        else:  # Debye's expansion: the next term is below 1e-24, in A' beside 1 / s
            p, q = 1 / s, (nu / s) ** 2
            logarithm = s + nu * mpmath.log(x / (nu + s)) - mpmath.log(2 * mpmath.pi * s) / 2
            logarithm += p * (mpmath.mpf(1) / 8 - 5 * q / 24) + p**2 * (1 - 6 * q + 5 * q**2) / 16
            ratio = x * (1 / (nu + s) - p**2 / 2)
            slope = nu * p / (nu + s) + p**2 * (mpmath.mpf(1) / 2 - q)
        return logarithm, ratio, slope, ratio + nu / x


@pytest.mark.parametrize("nu", [0.0, 5e-324, 1e-300, 0.5, 7.0, 16.0, 63.0, 1e9, 1e39, 1e154, 2e155, 1e300, 1.7e308])
def test_the_ends_of_the_exponent_range(place, nu, dtype):
    """Errors are relative to max(1, |value|); beyond the largest number of the dtype the result is infinite."""
    x = torch.tensor(ENDS[dtype], dtype=dtype, device=place.device).requires_grad_()
    logarithm, ratio = log_iv(nu, x), bessel_ratio(nu, x)
    slopes = [torch.autograd.grad(y, x, torch.ones_like(y))[0] for y in (ratio, logarithm)]
    largest = torch.finfo(dtype).max
    for values in zip(x.tolist(), logarithm.tolist(), ratio.tolist(), *(y.tolist() for y in slopes), strict=True):
        for name, value, expected in zip(
            ("log_iv", "bessel_ratio", "its slope", "log_iv's slope"),
            values[1:],
            exact_at_the_ends(nu, values[0]),
            strict=True,
        ):
            shown = f"{name} at nu {nu}, x {values[0]}: {value}, expected {mpmath.nstr(expected, 17)}"
            if abs(expected) > largest:
                assert value == math.copysign(math.inf, expected), shown
            else:
                assert abs(value - expected) <= TOLERANCE[dtype] * max(1, abs(expected)), shown


def test_every_instruction_set(native_isa, dtype):
    nu = torch.rand(3001, dtype=torch.float64) * 10 ** (4 * torch.rand(3001, dtype=torch.float64))
    x = (10 ** (11 * torch.rand(3001, dtype=torch.float64) - 3)).to(dtype)
    for function in (log_iv, bessel_ratio):
        fast = function(nu, x)
        with ltfast.backend("reference"):
            torch.testing.assert_close(fast, function(nu, x), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_orders_broadcast(place):
    nu = torch.tensor([[0.0], [3.5], [40.0]], device=place.device)
    x = torch.rand(5, device=place.device)[::2]
    result = log_iv(nu, x)
    assert result.shape == (3, 3)
    for row, order in zip(result, nu.flatten().tolist(), strict=True):
        torch.testing.assert_close(row, log_iv(order, x))
    assert log_iv(2.0, torch.rand((), device=place.device)).shape == ()
    assert log_iv(2.0, torch.rand(0, 3, device=place.device)).shape == (0, 3)


def test_ends(place, dtype):
    x = torch.tensor([0.0, math.nan, 1e-300, 1e100][: dtype.itemsize // 2], dtype=dtype, device=place.device)
    assert log_iv(0.0, x)[0] == 0
    assert log_iv(2.5, x)[0] == -math.inf
    assert log_iv(40.0, x)[0] == -math.inf
    for nu in (0.0, 2.5, 40.0):
        assert bessel_ratio(nu, x)[0] == 0
        assert log_iv(nu, x)[1].isnan()
        assert bessel_ratio(nu, x)[1].isnan()
        assert log_iv(nu, x)[2:].isfinite().all()
        assert (bessel_ratio(nu, x)[2:] <= 1).all()
        assert nu == 0 or log_iv(nu, -torch.ones_like(x)).isnan().all()
        infinite = torch.full((1,), math.inf, dtype=dtype, device=place.device)
        assert log_iv(nu, infinite).isnan()
        assert bessel_ratio(nu, infinite).isnan()


@pytest.mark.slow
@pytest.mark.parametrize("nu", [0.0, 0.5, 3.0, 20.0, 300.0])
@pytest.mark.parametrize("function", [log_iv, bessel_ratio])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_derivatives(backend, function, nu):
    x = (torch.rand(9, dtype=torch.float64) * 2 * (nu + 1)).requires_grad_()
    with ltfast.backend(backend):
        assert torch.autograd.gradcheck(lambda x: function(nu, x), x)
        assert torch.autograd.gradgradcheck(lambda x: function(nu, x), x)


@given(nu=st.floats(0, 5000), x=st.floats(1e-2, 1e8))
@settings(deadline=None)
def test_bessel_s_equation(nu, x):
    """The derivative satisfies A' = 1 - A^2 - (2 nu + 1) A / x as far as that equation can be evaluated."""
    values = torch.tensor([x], dtype=torch.float64, requires_grad=True)
    ratio = bessel_ratio(nu, values)
    (slope,) = torch.autograd.grad(ratio, values)
    value = ratio.detach()
    last = (2 * nu + 1) * value / values.detach()
    torch.testing.assert_close(slope, 1 - value**2 - last, rtol=1e-9, atol=1e-13 * max(1, last.item()))


@given(nu=st.floats(0, 5000), x=st.floats(1e-200, 1e8))
@settings(deadline=None)
def test_bounds(nu, x):
    """x / (nu + 1 + sqrt(x^2 + (nu + 1)^2)) <= A <= x / (nu + sqrt(x^2 + (nu + 2)^2)) (Amos, Math. Comp. 1974)."""
    ratio = bessel_ratio(nu, torch.tensor(x, dtype=torch.float64)).item()
    assert x / (nu + 1 + math.hypot(x, nu + 1)) * (1 - 1e-12) <= ratio
    assert ratio <= x / (nu + math.hypot(x, nu + 2)) * (1 + 1e-12)


def test_coefficients():
    first, second, third = debye.coefficients(3)
    assert first == (1 / 8, -5 / 24)
    assert second == (1 / 16, -3 / 8, 5 / 16)
    assert third == pytest.approx((25 / 384, -531 / 640, 221 / 128, -1105 / 1152), rel=1e-15)
    with mpmath.workdps(30):
        zero = mpmath.findroot(lambda z: mpmath.sqrt(1 + z * z) + mpmath.log(z / (1 + mpmath.sqrt(1 + z * z))), 0.66)
        assert abs(mpmath.mpf(debye.ZERO_HIGH) + mpmath.mpf(debye.ZERO_LOW) - zero) < 1e-23


def test_opcheck():
    x = torch.rand(7, dtype=torch.float64, requires_grad=True)
    for op in (log_iv_op, bessel_ratio_op, bessel_ratio_grad_op):
        torch.library.opcheck(op, (torch.tensor(3.0, dtype=torch.float64), x))
        torch.library.opcheck(op, (torch.rand(7, dtype=torch.float64) * 30, x))


@pytest.mark.slow
def test_torch_compile():
    def fit(x):
        return (log_iv(31.0, x) - bessel_ratio(31.0, x)).sum()

    x = torch.rand(9, requires_grad=True)
    compiled = torch.compile(fit, fullgraph=True)
    torch.testing.assert_close(compiled(x), fit(x))
    torch.testing.assert_close(torch.autograd.grad(compiled(x), x), torch.autograd.grad(fit(x), x))


@pytest.mark.parametrize("function", [log_iv, bessel_ratio])
def test_bad_input(function):
    x = torch.rand(3)
    with pytest.raises(TypeError, match="x is a float: expected a tensor"):
        function(1.0, 2.0)
    with pytest.raises(TypeError, match=r"x has dtype torch\.int64: expected float32 or float64"):
        function(1.0, torch.arange(3))
    for nu in (-0.5, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"nu is .*: expected a finite order of 0 or more"):
            function(nu, x)
    with pytest.raises(TypeError, match="nu is None: expected a number"):
        function(None, x)
    with pytest.raises(ValueError, match=r"nu has shape \(2,\): expected one that broadcasts with \(3,\)"):
        function(torch.ones(2), x)
    with pytest.raises(ValueError, match="nu requires a gradient"):
        function(torch.ones(3, requires_grad=True), x)
