"""`log_iv` and `bessel_ratio`, beside what people use for von Mises-Fisher models: scipy, and TensorFlow Probability.

The peers' accuracy and range: `python bench/accuracy_bessel.py`.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from ltfast.ops.bessel import bessel_ratio, log_iv
from ltfast.ops.core.bench import Case, Step, Work

SIZES = {"small": 1000, "imagenet-lt": 256 * 1000, "large": 2048 * 8142}  # a value a class, or a logit
ORDER = 63.0  # features 128 wide
FUNCTIONS = {"log_iv": log_iv, "bessel_ratio": bessel_ratio}
EXPS = {"log_iv": 4, "bessel_ratio": 1}  # a root for each; three logarithms


def case(device: torch.device, op: str, shape: str, count: int, order: float, dtype: torch.dtype) -> Case:
    def inputs() -> torch.Tensor:
        return (10 ** (7 * torch.rand(count, dtype=torch.float64, device=device) - 2)).to(dtype)

    implementations: dict[str, Callable[[], Step]] = {"ltfast": lambda: partial(FUNCTIONS[op], order)}
    if device.type == "cpu":
        implementations["scipy"] = partial(with_scipy, op, order)
        implementations["TensorFlow Probability"] = partial(with_tfp, op, order)

    return Case(
        op,
        shape,
        f"{count:,} values, order {order:g}",
        dtype,
        Work(bytes=2 * count * dtype.itemsize, exps=EXPS[op] * count),
        inputs,
        implementations,
    )


def with_scipy(op: str, order: float) -> Step:
    from scipy.special import ive

    def log_iv(x: Any) -> Any:
        return np.log(ive(order, x)) + x

    def bessel_ratio(x: Any) -> Any:
        return ive(order + 1, x) / ive(order, x)

    function = {"log_iv": log_iv, "bessel_ratio": bessel_ratio}[op]

    def step(x: torch.Tensor) -> torch.Tensor:
        with np.errstate(all="ignore"):  # a high order of a small value is too small for a float
            return torch.from_numpy(function(x.numpy()))

    return step


def with_tfp(op: str, order: float) -> Step:
    import jax
    from tensorflow_probability.substrates.jax import math

    jax.config.update("jax_enable_x64", True)

    def log_iv(x: Any) -> Any:
        return math.log_bessel_ive(order, x) + x

    def bessel_ratio(x: Any) -> Any:
        return math.bessel_iv_ratio(order + 1, x)

    function = jax.jit({"log_iv": log_iv, "bessel_ratio": bessel_ratio}[op])
    return lambda x: torch.from_dlpack(function(jax.dlpack.from_dlpack(x)).block_until_ready())


def cases(op: str, device: torch.device) -> Iterator[Case]:
    for shape, count in SIZES.items():
        yield case(device, op, shape, count, ORDER, torch.float32)
    for order in (0.5, ORDER, 1023.0):
        yield case(device, op, "imagenet-lt", SIZES["imagenet-lt"], order, torch.float64)
