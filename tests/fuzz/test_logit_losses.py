"""The losses over a matrix of logits."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from fuzz import draw as d
from fuzz.runner import Entry, fuzz
from ltfast.ops import agcl, balanced_bce, cross_entropy
from ltfast.ops.agcl.reference import LOWEST
from ltfast.ops.balanced_bce.reference import LIMIT
from ltfast.ops.cross_entropy.reference import LIMIT as FARTHEST
from ops.compare import tolerances
from ops.conftest import Place

SCALES = (1.0, 1.0, 1.0, 1.0, 30.0, 1e-30, 1e4, 1e15, 1e30, 1e38)
FILLS = ("uniform", "uniform", "normal", "constant", "wide", "extreme")
reductions = st.sampled_from(("mean", "sum", "none"))


def matrices(backend: str) -> st.SearchStrategy[tuple[int, ...]]:
    if backend == "triton":
        return d.shapes(d.SIZES[:6], d.LONG_SIZES, elements=9500)
    return d.shapes(d.SIZES, d.LONG_SIZES, elements=30_000)


@st.composite
def agcl_arguments(draw: st.DrawFn, backend: str) -> dict[str, Any]:
    rows, classes = draw(matrices(backend))
    noise = d.floats((classes,), fills=("positive",), scales=(0.5, 0.5, 1.0, 0.0), extremes=None, broken=())
    weight = d.floats((classes,), fills=("positive",), scales=(1.0, 3.0), extremes=None, broken=())
    exponents = d.number(0, 9, 0.5, 1.0, 2.0, 4.0, 8.0)
    target, ignored = draw(d.labels_and_ignored(rows, classes))
    return {
        "cosine": draw(d.floats((rows, classes), fills=FILLS, scales=SCALES)),
        "target": target,
        "ignore_index": ignored,
        "class_noise": draw(st.none() | noise),
        "weight": draw(st.none() | weight),
        "scale": draw(d.number(1e-3, 100, 20.0)),
        "margin": draw(d.number(-0.5, 0.5, 0.1, 0.0)),
        "weight_pos": draw(d.number(0, 2, 1.0)),
        "weight_neg": draw(d.number(0, 2, 1.0, 1e-3)),
        "gamma_pos": draw(exponents),
        "gamma_neg": draw(exponents),
        "reduction": draw(reductions),
        "noise_seed": draw(d.seeds),
    }


def run_agcl(noise_seed: int, **arguments: Any) -> Tensor:
    return agcl(**arguments, generator=torch.Generator().manual_seed(noise_seed))


def agcl_saturates(cosine: Tensor, target: Tensor, scale: float, gamma_pos: float, **_: Any) -> Tensor:
    """Rows of which the label's difference is cut off, and with it the reference's gradient; or where that gradient
    is what is left of gamma_pos times the difference."""
    own = cosine.gather(1, target.long().clamp(min=0)[:, None])
    lowest = 0.1 * LOWEST if gamma_pos == 0 else -1e4
    return (scale * (own - cosine.amax(1, keepdim=True)) < lowest).squeeze(1)


def agcl_unit(arguments: Mapping[str, Any]) -> float:
    """Where gamma_neg is under 1 every class weighs as much as the label."""
    others = arguments["cosine"].shape[1] ** 0.5 if arguments["gamma_neg"] < 1 else 0.2
    return arguments["scale"] * (0.2 * arguments["weight_pos"] + others * arguments["weight_neg"])


def spoil_agcl(arguments: dict[str, Any]) -> dict[str, list[Any]]:
    cosine, target = arguments["cosine"], arguments["target"]
    return {
        "cosine": [*d.wrong_type(cosine), *d.wrong_shape(cosine, empty=(1,))],
        "target": [
            *d.wrong_type(target),
            *d.wrong_shape(target),
            *d.wrong_size(target, 0),
            *d.elsewhere(target),
            *d.wrong_label(target, cosine.shape[1]),
        ],
        "class_noise": [
            *d.wrong_shape(noise := d.Array((cosine.shape[1],))),
            *d.wrong_size(noise, 0),
            *d.elsewhere(noise),
        ],
        "weight": [*d.wrong_shape(noise), *d.wrong_size(noise, 0), *d.elsewhere(noise), 1.0, "x"],
        "scale": [*d.NOT_POSITIVE, None, "x"],
        "margin": [*d.NOT_FINITE, None],
        "weight_pos": [*d.NOT_FINITE],
        "weight_neg": [*d.NOT_FINITE],
        "gamma_pos": [*d.NOT_FINITE, -1e-9],
        "gamma_neg": [*d.NOT_FINITE, -1e-9],
        "ignore_index": [None, 1.5, "x"],
        "reduction": ["max", None, 1],
    }


AGCL = Entry(
    name="agcl",
    arguments=agcl_arguments,
    run=run_agcl,
    spoil=spoil_agcl,
    labels=("target",),
    gradients=("cosine",),
    unclear=agcl_saturates,
    unit=agcl_unit,
    rounding={"class_noise": 4e-7},  # the noise itself, which is float32
    weight=2,
)


@st.composite
def balanced_bce_arguments(draw: st.DrawFn, backend: str) -> dict[str, Any]:
    rows, classes = draw(matrices(backend))
    soft = d.floats((rows, classes), fills=("eighths",), extremes=None)
    vector = d.floats((classes,), scales=(1.0, 1.0, 10.0, 1e3), extremes=None, broken=())
    labels, ignored = draw(d.labels_and_ignored(rows, classes))
    weight = d.floats((classes,), fills=("positive",), scales=(1.0, 3.0, 100.0), extremes=None, broken=())
    target = draw(st.just(labels) | soft)
    threshold = draw(st.none() | st.sampled_from((0.0, 0.05, 0.3, 0.5, 0.95, -1.0, 2.0)))
    # a smoothed soft target may be equal to the threshold but for its rounding
    smoothing = 0.0 if target is not labels and threshold is not None else draw(d.number(0, 0.99, 0.1))
    return {
        "logits": draw(d.floats((rows, classes), fills=FILLS, scales=SCALES)),
        "target": target,
        "ignore_index": ignored,
        "bias": draw(vector),
        "weight": draw(st.none() | weight),
        "pos_weight": draw(st.none() | weight),
        "label_smoothing": smoothing,
        "target_threshold": threshold,
        "reduction": draw(reductions),
    }


def bce_tolerance(place: Place, dtype: torch.dtype, arguments: Mapping[str, Any]) -> tuple[float, float]:
    """Sums of equal losses are rounded the same way each time: 64 of them in float32."""
    loss, gradient = tolerances(dtype)
    return 3 * loss, gradient


def bce_saturates(logits: Tensor, bias: Tensor, **_: Any) -> Tensor:
    return ((logits + bias).abs() > 0.9 * LIMIT).any(1)


def spoil_balanced_bce(arguments: dict[str, Any]) -> dict[str, list[Any]]:
    logits, target = arguments["logits"], arguments["target"]
    labels = d.Array((logits.shape[0],), torch.int64, "labels", scale=logits.shape[1])
    soft = d.Array(logits.shape, fill="eighths")
    vector = d.Array((logits.shape[1],))
    wrong_vector = [*d.wrong_shape(vector), *d.wrong_size(vector, 0), *d.elsewhere(vector), 1.0, "x"]
    return {
        "logits": [*d.wrong_type(logits), *(x for x in d.wrong_shape(logits, empty=(1,)))],
        "target": [
            *d.wrong_type(target),
            *d.wrong_label(labels, logits.shape[1]),
            *d.wrong_size(labels, 0),
            replace(soft, shape=(*soft.shape, 1)),
            *d.wrong_size(soft, 0),
            *d.wrong_size(soft, 1),
            *d.elsewhere(soft),
            *d.elsewhere(labels),
            replace(soft, dtype=torch.int64),
        ],
        "bias": [*wrong_vector, None, replace(vector, dtype=torch.int64)],
        "weight": wrong_vector,
        "pos_weight": wrong_vector,
        "label_smoothing": [-0.1, 1.0, *d.NOT_FINITE, None],
        "target_threshold": [*d.NOT_FINITE, "x"],
        **({"ignore_index": [None, 1.5, "x"]} if len(target.shape) == 1 else {}),
        "reduction": ["max", None],
    }


BALANCED_BCE = Entry(
    name="balanced_bce",
    arguments=balanced_bce_arguments,
    run=balanced_bce,
    spoil=spoil_balanced_bce,
    labels=("target",),
    row_by_row=("target",),
    gradients=("logits",),
    tolerance=bce_tolerance,
    loose=("without gradients",),  # another loop, which sums in another order
    unclear=bce_saturates,
    weight=2,
)


@st.composite
def cross_entropy_options(draw: st.DrawFn, rows: int, classes: int) -> dict[str, Any]:
    """What ``nn.CrossEntropyLoss`` takes beside the logits."""
    soft = d.floats((rows, classes), fills=("eighths",), extremes=None)
    labels, ignored = draw(d.labels_and_ignored(rows, classes))
    weight = d.floats((classes,), fills=("positive",), scales=(1.0, 3.0, 100.0), extremes=None, broken=())
    return {
        "target": draw(st.just(labels) | soft),
        "weight": draw(st.none() | weight),
        "label_smoothing": draw(d.number(0, 0.99, 0.0, 0.1)),
        "ignore_index": ignored,
        "reduction": draw(reductions),
    }


def of_cross_entropy(bias: Sequence[float], **of_logits: Any) -> Any:
    """A strategy of the arguments, from the scales of the bias and what ``d.floats`` draws the logits from."""

    @st.composite
    def strategy(draw: st.DrawFn, backend: str) -> dict[str, Any]:
        rows, classes = draw(matrices(backend))
        vector = d.floats((classes,), scales=bias, extremes=None, broken=())
        return {
            "logits": draw(d.floats((rows, classes), **of_logits)),
            "bias": draw(st.none() | vector),
            **draw(cross_entropy_options(rows, classes)),
        }

    return strategy


def score_rounding(logits: d.Array) -> float:
    """By how much the rounded sum of a logit and a number of its class is off."""
    largest = logits.values().double().abs().nan_to_num(0, 0).max().item()
    return min(largest * (2.0**-51 if logits.dtype == torch.float64 else 2.0**-22), 1e-2)


def cross_entropy_tolerance(place: Place, dtype: torch.dtype, given: Mapping[str, Any]) -> tuple[float, float]:
    loss, gradient = tolerances(dtype)
    rounding = 0 if given["bias"] is None else score_rounding(given["logits"])
    return loss + rounding, gradient + rounding


def largest_weight(given: Mapping[str, Any]) -> float:
    """At least 1. Loss and gradient are differences of numbers as large."""
    return 1.0 if given["weight"] is None else max(1.0, given["weight"].values().max().item())


def weighted_unit(given: Mapping[str, Any]) -> float:
    return 0.03 * largest_weight(given)


def below_the_peak(logits: Tensor, bias: Tensor | None) -> Tensor:
    """How far each score is below the largest of its row."""
    z = logits.double() if bias is None else logits.double() + bias.double()
    return z.amax(1, keepdim=True) - z


def cross_entropy_saturates(logits: Tensor, bias: Tensor | None = None, **_: Any) -> Tensor:
    return (below_the_peak(logits, bias) > 0.9 * FARTHEST).any(1)


def cross_entropy_nearly_saturates(
    logits: Tensor, bias: Tensor | None, target: Tensor, label_smoothing: float, **_: Any
) -> bool:
    """A term that saturates in one block of a row is moved by the next block's peak, if that is not itself beyond the
    limit."""
    distance = below_the_peak(logits, bias)
    near = ((distance > 1e-7 * FARTHEST) & (distance < 2 * FARTHEST)).any().item()
    return bool(near and (target.dim() == 2 or label_smoothing > 0))


def spoil_cross_entropy(arguments: dict[str, Any]) -> dict[str, list[Any]]:
    spoilt = spoil_balanced_bce(arguments)
    del spoilt["pos_weight"], spoilt["target_threshold"]
    return spoilt | {"bias": spoilt["weight"]}


CROSS_ENTROPY = Entry(
    name="cross_entropy",
    arguments=of_cross_entropy((1.0, 1.0, 10.0), fills=FILLS, scales=SCALES),
    run=cross_entropy,
    spoil=spoil_cross_entropy,
    labels=("target",),
    row_by_row=("target",),
    gradients=("logits",),
    tolerance=cross_entropy_tolerance,
    size=largest_weight,
    unit=weighted_unit,
    loose=("without gradients",),  # another loop, whose products and sums the compiler fuses in other places
    unclear=cross_entropy_saturates,
    beyond=cross_entropy_nearly_saturates,
    weight=2,
)


def plain_cross_entropy(
    logits: Tensor, bias: Tensor | None, target: Tensor, weight: Tensor | None, label_smoothing: float,
    ignore_index: int, reduction: str,
) -> Tensor:  # fmt: skip
    """The formula, with the gradient of the unsaturated loss, which the kernels have where a score saturates."""
    z = logits if bias is None else logits + bias
    weight = torch.ones(z.shape[1]).to(z) if weight is None else weight
    if target.is_floating_point():
        counts, total = torch.ones(len(z)).to(z), len(z)
    else:
        counts = (target.long() != ignore_index).double()
        label = torch.where(counts > 0, target.long(), 0)
        target, total = F.one_hot(label, z.shape[1]).double(), (counts * weight[label]).sum()
    share = weight * (target * (1 - label_smoothing) + label_smoothing / z.shape[1])
    d = z - z.detach().amax(1, keepdim=True)
    bounded = d.detach().clamp(min=-FARTHEST) + (z - z.detach())
    rows = counts * (share.sum(1) * d.logsumexp(1) - (share * bounded).sum(1))
    return rows if reduction == "none" else rows.sum() / (total if reduction == "mean" else 1)


SATURATED_CROSS_ENTROPY = Entry(
    name="cross_entropy_saturated",
    arguments=of_cross_entropy(
        (0.0,),  # the sum with another would be rounded by more than the limit
        dtypes=(torch.float32, torch.float64, torch.bfloat16),
        fills=("wide", "extreme", "uniform", "normal"),
        scales=(1e38, 1.0),
        broken=(),
    ),
    run=cross_entropy,
    reference=plain_cross_entropy,
    row_by_row=("target",),
    gradients=("logits",),
    rounding={"logits": 0},  # scores that are equal would come apart by more than the limit
    size=largest_weight,
    unit=weighted_unit,
    loose=("without gradients",),
    beyond=cross_entropy_nearly_saturates,
    weight=0.5,
    triton_weight=0.1,
)

globals().update(fuzz(AGCL, BALANCED_BCE, CROSS_ENTROPY, SATURATED_CROSS_ENTROPY))
