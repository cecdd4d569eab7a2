r"""The uniform (Debye) expansion of the modified Bessel function in logarithmic form.

With :math:`s = \sqrt{\nu^2 + x^2}`, :math:`p = 1 / s` and :math:`q = (\nu p)^2`

.. math::

    \log I_\nu(x) - \nu \log x = s - \nu \log(\nu + s) - \tfrac12 \log(2 \pi s) + \sum_{k=1}^{J} p^k d_k(q)

The usual form (DLMF 10.41.3) has the logarithm of a sum of polynomials :math:`u_k`; in this one the logarithm is
expanded as well, so that nothing is left but a polynomial. Of order 16 or more and with twelve terms it is exact to
1e-14 for every x, of order 8 or more and with five terms to 1.4e-7.
"""

from functools import cache

# The order from which the expansion is used, and its terms; below it, recurrences come down from there.
ORDER, TERMS = 16, 12  # float64
ORDER_SINGLE, TERMS_SINGLE = 8, 5  # float32
ERROR, ERROR_SINGLE = 1e-14, 1.4e-7  # of F

# Where sqrt(1 + z^2) + log(z / (1 + sqrt(1 + z^2))) is 0, in two parts of which the first has 26 bits: log I_nu is near
# zero at ZERO nu, for large nu the difference of large terms.
ZERO_HIGH, ZERO_LOW = 0.662743404507637, 1.4841544557048961e-08
ZERO = ZERO_HIGH + ZERO_LOW


def coefficients(terms: int) -> tuple[tuple[float, ...], ...]:
    r"""The coefficients of :math:`d_1` to :math:`d_{terms}`, lowest power of q first.

    With :math:`D_k(t) = t^k d_k(t^2)` and :math:`a = t^2 (1 - t^2) / 2`, Bessel's equation gives
    :math:`D_1' = (1 - 5 t^2) / 8` and :math:`D_{k+1}' = (a D_k')' + a \sum_{i+j=k} D_i' D_j'`. The coefficients of
    :math:`2^{4k-1} D_k'` are integers, so nothing is rounded before the last division.
    """
    twice_a = [0, 0, 1, 0, -1]
    slopes = [[1, 0, -5]]  # slopes[k - 1] is that of D_k, times 2^(4k - 1)
    while len(slopes) < terms:
        following = [8 * x for x in _differentiate(_multiply(twice_a, slopes[-1]))]
        for left, right in zip(slopes[:-1], reversed(slopes[:-1]), strict=True):
            product = _multiply(twice_a, _multiply(left, right))
            following += [0] * (len(product) - len(following))
            following = [x + (16 * product[i] if i < len(product) else 0) for i, x in enumerate(following)]
        slopes.append(following)
    return tuple(
        tuple(slope[k + 2 * i - 1] / (2 ** (4 * k - 1) * (k + 2 * i)) for i in range(k + 1))
        for k, slope in enumerate(slopes, 1)
    )


def terms_from(order: float, single: bool) -> int:
    """The terms that are enough for this order and all above; ``order`` is ORDER or more, or ORDER_SINGLE."""
    most, error = (TERMS_SINGLE, ERROR_SINGLE) if single else (TERMS, ERROR)
    return next((k for k in range(most) if _largest(k) < error * order ** (k + 1)), most)


@cache
def _largest(k: int) -> float:
    r"""The largest absolute value of :math:`D_{k+1}`, the term after the first k, times the order's power."""
    row = COEFFICIENTS[k]
    return max(abs(sum(c * (i / 200) ** (k + 1 + 2 * j) for j, c in enumerate(row))) for i in range(201))


def _multiply(left: list[int], right: list[int]) -> list[int]:
    product = [0] * (len(left) + len(right) - 1)
    for i, x in enumerate(left):
        for j, y in enumerate(right):
            product[i + j] += x * y
    return product


def _differentiate(polynomial: list[int]) -> list[int]:
    return [i * x for i, x in enumerate(polynomial)][1:]


COEFFICIENTS = coefficients(TERMS)
