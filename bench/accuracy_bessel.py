"""Compares the range and accuracy of ``log_iv`` and its peers with 50-digit arithmetic.

python bench/accuracy_bessel.py
"""

import math
from collections.abc import Callable

import mpmath
import numpy as np
import torch

from ltfast.ops import log_iv

ORDERS = [0.0, 0.5, 7.0, 63.0, 511.0, 2047.0]
ARGUMENTS = [1e-2, 1.0, 30.0, 500.0, 2e3, 1e7]


def peers() -> dict[str, Callable[[float, np.ndarray], np.ndarray]]:
    """The installed implementations."""
    functions = {"ltfast": lambda nu, x: log_iv(nu, torch.from_numpy(x)).numpy()}
    try:
        from scipy import special

        functions["scipy: log(ive) + x"] = lambda nu, x: np.log(special.ive(nu, x)) + x
    except ImportError:
        pass
    try:
        import jax
        from tensorflow_probability.substrates import jax as tfp

        jax.config.update("jax_enable_x64", True)
        functions["TensorFlow Probability"] = lambda nu, x: np.asarray(tfp.math.log_bessel_ive(nu, x)) + x
    except ImportError:
        pass
    return functions


def main() -> None:
    x = np.array(ARGUMENTS)
    print(f"{'':24}{'not finite':>12}{'largest error':>16}   relative to max(1, |value|), over")
    print(f"{'':55}orders {ORDERS} and arguments {ARGUMENTS}")
    for name, function in peers().items():
        lost, worst = 0, 0.0
        for nu in ORDERS:
            with np.errstate(all="ignore"):
                values = function(nu, x)
            for argument, value in zip(ARGUMENTS, values.tolist(), strict=True):
                with mpmath.workdps(50):
                    exact = mpmath.log(mpmath.besseli(nu, argument, maxterms=10**6, maxprec=10**6))
                    if math.isfinite(value):
                        worst = max(worst, float(abs(value - exact) / max(1, abs(exact))))
                    else:
                        lost += 1
        print(f"{name:24}{lost:6} of {len(ORDERS) * len(ARGUMENTS)}{worst:16.1e}")


if __name__ == "__main__":
    main()
