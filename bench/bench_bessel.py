"""``log_iv`` beside what people use for von Mises-Fisher models today: scipy and TensorFlow Probability (on JAX).

The peers are optional; each is left out by name where it is not installed. Their accuracy and range:
``python bench/accuracy_bessel.py``.
"""

import numpy as np
import pytest
import torch

from ltfast.ops import bessel_ratio, log_iv

COUNT = 1_000_000


def scipy_log_iv(nu: float, x: np.ndarray):
    special = pytest.importorskip("scipy.special")
    return lambda: np.log(special.ive(nu, x)) + x


def tfp_log_iv(nu: float, x: np.ndarray):
    jax = pytest.importorskip("jax")
    jax.config.update("jax_enable_x64", True)
    math = pytest.importorskip("tensorflow_probability.substrates.jax").math
    values = jax.numpy.asarray(x)
    function = jax.jit(lambda v: math.log_bessel_ive(nu, v) + v)
    return lambda: function(values).block_until_ready()


@pytest.mark.parametrize("implementation", ["ltfast", "scipy", "TensorFlow Probability"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("nu", [0.5, 63.0, 1023.0])
def test_log_iv(step, device, nu, dtype, implementation):
    x = (10 ** (torch.rand(COUNT, dtype=torch.float64) * 7 - 2)).to(dtype)
    calls = {"scipy": scipy_log_iv, "TensorFlow Probability": tfp_log_iv}
    if implementation == "ltfast":
        values = x.to(device)
        run = lambda: log_iv(nu, values)  # noqa: E731
    else:
        run = calls[implementation](nu, x.numpy())
    name = f"log_iv order {nu:g} 1e6 values {str(dtype)[6:]}"
    step(run, group=name, implementation=implementation, moved=2 * x.numel() * x.element_size())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("nu", [0.5, 63.0, 1023.0])
def test_bessel_ratio(step, device, nu, dtype):
    x = (10 ** (torch.rand(COUNT, dtype=torch.float64, device=device) * 7 - 2)).to(dtype)
    name = f"bessel_ratio order {nu:g} 1e6 values {str(dtype)[6:]}"
    step(lambda: bessel_ratio(nu, x), group=name, implementation="ltfast", moved=2 * x.numel() * x.element_size())
