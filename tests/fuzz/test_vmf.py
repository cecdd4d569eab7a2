"""Von Mises-Fisher logits and their cross-entropy, and the Bessel functions."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from fuzz import draw as d
from fuzz.runner import Entry, fuzz
from ltfast.ops import bessel_ratio, log_iv, vmf_cross_entropy, vmf_logits
from ops.compare import tolerances
from ops.conftest import Place

WIDTHS = (2, 3, 4, 7, 15, 16, 17, 18, 31, 33, 64, 127, 128, 129, 256, 511, 1024)


@st.composite
def vmf_arguments(draw: st.DrawFn, backend: str) -> dict[str, Any]:
    few = backend == "triton"
    rows, classes, width = draw(
        d.shapes(d.SIZES[:5] if few else d.SIZES, d.SIZES, WIDTHS, elements=5_000 if few else 40_000)
    )
    kappa = d.floats(
        (classes,),
        fills=("concentrations", "concentrations", "constant"),
        scales=(1.0, 100.0, 1e35, 0.0),
        extremes=None,
        broken=(),
    )
    return {
        "features": draw(
            d.floats((rows, width), fills=("unit",), scales=(1.0, 1.0, 1.0, 0.0, 1e-20, 30.0, 1e10, 1e38))
        ),
        "directions": draw(d.floats((classes, width), fills=("unit",), extremes=None, broken=())),
        "kappa": draw(kappa),
        "temperature": draw(d.number(0.01, 5, 0.1, 0.07, 1.0)),
    }


def vmf_opposes(features: Tensor, directions: Tensor, kappa: Tensor, temperature: float, **_: Any) -> Tensor:
    """Rows with a k'^2 of 0 or less, since rounding leaves no direction of length 1: the reference's gradient ends."""
    z = features / temperature
    square = kappa**2 + 2 * kappa * (z @ directions.T) + z.square().sum(1, keepdim=True)
    return (square < 1e-2 * kappa**2).any(1)


@st.composite
def vmf_cross_entropy_arguments(draw: st.DrawFn, backend: str) -> dict[str, Any]:
    arguments = draw(vmf_arguments(backend))
    rows, classes = len_of(arguments["features"]), len_of(arguments["directions"])
    prior = d.floats((classes,), extremes=None, broken=())
    target, ignored = draw(d.labels_and_ignored(rows, classes))
    return arguments | {
        "target": target,
        "ignore_index": ignored,
        "log_prior": draw(st.none() | prior),
        "reduction": draw(st.sampled_from(("mean", "sum", "none"))),
    }


def len_of(array: d.Array) -> int:
    return array.shape[0]


def largest_logit(features: Tensor, temperature: float) -> float:
    """Of the rows that are finite."""
    lengths = features.double().norm(dim=1) / temperature
    return lengths[lengths.isfinite()].max().item() if lengths.isfinite().any() else 1.0


def vmf_tolerance(place: Place, dtype: torch.dtype, arguments: Mapping[str, Any]) -> tuple[float, float]:
    """As ``ops/test_vmf.py`` has them: what rounding makes of a logit, and low orders."""
    loss, gradient = tolerances(dtype)
    if loss < 1e-6:
        loss, gradient = 3e-10, 3e-10
    elif arguments["features"].shape[1] < 18:
        loss, gradient = 5 * loss, max(gradient, 3e-5)
    else:
        loss *= 2
    larger = max(1, 0.1 * largest_logit(arguments["features"].values(), arguments["temperature"]))
    return loss * larger, gradient * larger


def vmf_saturates(features: Tensor, kappa: Tensor, temperature: float, **_: Any) -> bool:
    """Where the reference's difference of two log-partitions has no digit left."""
    return bool(kappa.max() > 1e6 or (features.double().norm(dim=1) / temperature).max() > 1e9)


def spoil_vmf(arguments: dict[str, Any]) -> dict[str, list[Any]]:
    features, directions, kappa = (arguments[name] for name in ("features", "directions", "kappa"))
    whole = torch.int64
    return {
        "features": [
            *d.wrong_type(features, also=(whole,)),
            *d.wrong_shape(features, empty=(1,)),
            replace(features, shape=(3, 1)),
        ],
        "directions": [
            *d.wrong_type(directions, also=(whole,)),
            *d.wrong_shape(directions),
            *d.wrong_size(directions, 1),
            *d.elsewhere(directions),
        ],
        "kappa": [
            *d.wrong_type(kappa, also=(whole,)),
            *d.wrong_shape(kappa),
            *d.wrong_size(kappa, 0),
            *d.elsewhere(kappa),
        ],
        "temperature": [*d.NOT_POSITIVE, None, "x"],
    }


def spoil_vmf_cross_entropy(arguments: dict[str, Any]) -> dict[str, list[Any]]:
    target, classes = arguments["target"], len_of(arguments["directions"])
    prior = d.Array((classes,))
    return spoil_vmf(arguments) | {
        "target": [
            *d.wrong_type(target),
            *d.wrong_shape(target),
            *d.wrong_size(target, 0),
            *d.elsewhere(target),
            *d.wrong_label(target, classes),
        ],
        "ignore_index": [None, 1.5, "x"],
        "log_prior": [*d.wrong_shape(prior), *d.wrong_size(prior, 0), *d.elsewhere(prior), 1.0],
        "reduction": ["max", None],
    }


VMF_LOGITS = Entry(
    name="vmf_logits",
    arguments=vmf_arguments,
    run=vmf_logits,
    spoil=spoil_vmf,
    gradients=("features",),
    tolerance=vmf_tolerance,
    loose=("contiguous arguments", "two threads"),  # the products are PyTorch's
    unit=lambda arguments: 0.1 / arguments["temperature"],
    beyond=vmf_saturates,
    unclear=vmf_opposes,
)
VMF_CROSS_ENTROPY = Entry(
    name="vmf_cross_entropy",
    arguments=vmf_cross_entropy_arguments,
    run=vmf_cross_entropy,
    spoil=spoil_vmf_cross_entropy,
    labels=("target",),
    gradients=("features",),
    tolerance=vmf_tolerance,
    loose=("contiguous arguments", "two threads"),  # the products are PyTorch's
    unit=lambda arguments: 0.1 / arguments["temperature"],
    beyond=vmf_saturates,
    unclear=vmf_opposes,
    weight=2,
)


@st.composite
def bessel_arguments(draw: st.DrawFn, backend: str) -> dict[str, Any]:
    size = st.sampled_from((0, 1, 2, 3, 7, 16, 17))
    shape = tuple(draw(st.lists(size, max_size=3)))
    dtypes = (torch.float32, torch.float64)
    x = d.floats(
        shape, dtypes=dtypes, fills=("positive", "concentrations", "normal", "constant"),
        scales=(1.0, 30.0, 1e-3, 1e4, 1e8, 0.0), extremes=None,
    )  # fmt: skip
    order = d.number(0, 5000, 0.5, 1.0, 7.0, 8.0, 15.5, 16.0, 63.0, 1e6)
    own = tuple(1 if draw(st.booleans()) else n for n in shape[draw(st.integers(0, len(shape))) :])
    orders = d.floats(own, fills=("positive", "constant"), scales=(1.0, 16.0, 100.0, 5000.0), extremes=None, broken=())
    return {"nu": draw(order | orders), "x": draw(x)}


def bessel_tolerance(place: Place, dtype: torch.dtype, arguments: Mapping[str, Any]) -> tuple[float, float]:
    x = arguments["x"].dtype
    return (1e-12, 1e-9) if x == torch.float64 and place.backend == "native" else (5e-7, 1e-5)


def spoil_bessel(arguments: dict[str, Any]) -> dict[str, list[Any]]:
    x = arguments["x"]
    order = d.Array((5, *x.shape), fill="positive")
    return {
        "x": d.wrong_type(x, also=(torch.int64, torch.bfloat16, torch.float16)),
        "nu": [-0.5, *d.NOT_FINITE, None, "x", d.Array((2, 3, 5, 7), fill="positive"), *d.elsewhere(order)]
        if 0 not in x.shape and max(x.shape, default=0) > 1
        else [-0.5, *d.NOT_FINITE, None],
    }


BESSEL = [
    Entry(
        name=function.__name__,
        arguments=bessel_arguments,
        run=function,
        spoil=spoil_bessel,
        gradients=("x",),
        tolerance=bessel_tolerance,
    )
    for function in (log_iv, bessel_ratio)
]

globals().update(fuzz(VMF_LOGITS, VMF_CROSS_ENTROPY, *BESSEL))
