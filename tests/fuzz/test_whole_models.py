"""Functions of lists of tensors, and the noise: what is the same to the last bit."""

import math
from dataclasses import replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from fuzz import draw as d
from fuzz.runner import Entry, fuzz
from ltfast.ops import apply_masks_, importance_threshold, taylor_importance_
from ltfast.ops.core import backends
from ltfast.ops.noise import half_normal
from ltfast.ops.taylor import reference

SIDES = (0, 1, 1, 2, 3, 7, 8, 16, 17, 33, 127, 129, 1024)
OWN_MEMORY = ("contiguous", "offset", "padded", "steps", "reversed")
FILLS = ("normal", "positive", "wide", "extreme", "constant")
WIDE = (torch.float32, torch.float64)


@st.composite
def shapes(draw: st.DrawFn, backend: str) -> list[tuple[int, ...]]:
    """Of the tensors of a model."""
    number = draw(st.sampled_from((1, 1, 2, 3, 7)))
    ranks = [draw(st.integers(0, 4)) for _ in range(number)]
    elements = 2_000 if backend == "triton" else 20_000
    return [draw(d.shapes(*[SIDES] * rank, elements=elements)) if rank else () for rank in ranks]


def many(draw: st.DrawFn, of: list[tuple[int, ...]], **options: Any) -> list[d.Array]:
    options = {"fills": FILLS, "scales": (1.0, 1.0, 1e-20, 0.0)} | options
    return [draw(d.floats(shape, **options)) for shape in of]


@st.composite
def taylor_arguments(draw: st.DrawFn, backend: str) -> dict[str, Any]:
    of = draw(shapes(backend))
    return {
        "accumulators": many(draw, of, dtypes=WIDE, layouts=OWN_MEMORY, fills=("positive", *FILLS)),
        "parameters": many(draw, of),
        "gradients": many(draw, of),
    }


def run_taylor(accumulators: list[Tensor], parameters: list[Tensor], gradients: list[Tensor]) -> tuple[Tensor, ...]:
    taylor_importance_(accumulators, parameters, gradients)
    return tuple(x.clone() for x in accumulators)


def plain_taylor(accumulators: list[Tensor], parameters: list[Tensor], gradients: list[Tensor]) -> tuple[Tensor, ...]:
    reference.taylor_importance_(accumulators, parameters, gradients)
    return tuple(accumulators)


def wrong_list(arrays: list[d.Array], *, own_memory: bool = False) -> list[Any]:
    first, others = arrays[0], arrays[1:]
    wrong = [[None, *others], [1.5, *others], [*arrays, first], [replace(first, shape=(*first.shape, 2)), *others]]
    wrong += [[bad, *others] for bad in d.elsewhere(first)] if others else []
    if own_memory and math.prod(first.shape) > 1:
        wrong.append([replace(first, layout="expanded"), *others])
    return wrong


def spoil_taylor(given: dict[str, Any]) -> dict[str, list[Any]]:
    halves = [replace(array, dtype=torch.float16, planted=()) for array in given["accumulators"]]
    whole = [replace(array, dtype=torch.int32, fill="labels", scale=5, planted=()) for array in given["parameters"]]
    return {
        # a list that is longer than the accumulators is said to be at fault itself
        "accumulators": [
            *[x for x in wrong_list(given["accumulators"], own_memory=True) if x[0] in (None, 1.5)],
            halves,
        ],
        "parameters": [*wrong_list(given["parameters"]), whole],
        "gradients": [*wrong_list(given["gradients"]), whole],
    }


TAYLOR = Entry(
    name="taylor_importance_",
    arguments=taylor_arguments,
    run=run_taylor,
    reference=plain_taylor,
    spoil=spoil_taylor,
    changed=("accumulators",),
    exact=True,
)


@st.composite
def threshold_arguments(draw: st.DrawFn, backend: str) -> dict[str, Any]:
    of = [*draw(shapes(backend)), (draw(st.integers(1, 40)),)]
    accumulators = many(draw, of, dtypes=[draw(st.sampled_from(WIDE))])
    share = draw(st.sampled_from((0.0, 0.1, 0.5, 1.0)))
    masks = [
        d.Array(shape, draw(st.sampled_from((torch.bool, torch.uint8))), "mask", draw(d.seeds), share,
                draw(st.sampled_from(d.LAYOUTS)))
        for shape in of
    ]  # fmt: skip
    # one element that counts
    masks[-1] = replace(masks[-1], scale=max(share, 0.1), planted=((0, 1),), layout="contiguous")
    return {
        "accumulators": accumulators,
        "fraction": draw(d.number(1e-9, 1.0, 0.5, 0.3)),
        "masks": draw(st.none() | st.just(masks)),
    }


def plain_threshold(accumulators: list[Tensor], fraction: float, masks: list[Tensor] | None) -> Tensor:
    return reference.importance_threshold(accumulators, masks or [], float(fraction))


def spoil_threshold(given: dict[str, Any]) -> dict[str, list[Any]]:
    accumulators = given["accumulators"]
    masks = [d.Array(array.shape, torch.bool, "mask", scale=0.0) for array in accumulators]
    halves = [replace(accumulators[0], dtype=torch.float16, planted=()), *accumulators[1:]]
    none = [] if given["masks"] else [[], [d.Array((0, 3))]]
    return {
        "accumulators": [halves, [None, *accumulators[1:]], *none],
        "fraction": [0.0, -0.1, 1.0001, *d.NOT_FINITE, None, "x"],
        "masks": [[*masks, masks[0]], [replace(masks[0], dtype=torch.int32), *masks[1:]], masks[1:], masks],
    }


THRESHOLD = Entry(
    name="importance_threshold",
    arguments=threshold_arguments,
    run=importance_threshold,
    reference=plain_threshold,
    spoil=spoil_threshold,
    labels=("masks",),  # Triton does not read them back: NaN where no element is left
    exact=True,
)


@st.composite
def masks_arguments(draw: st.DrawFn, backend: str) -> dict[str, Any]:
    of = draw(shapes(backend))
    kinds = (*d.FLOATS, torch.int64, torch.int16, torch.uint8, torch.bool)
    dtypes = [draw(st.sampled_from(kinds)) for _ in of]

    def values(layouts: tuple[str, ...]) -> list[d.Array]:
        return [
            draw(d.floats(shape, dtypes=[dtype], fills=FILLS, layouts=layouts))
            if dtype.is_floating_point
            else d.Array(shape, dtype, "labels", draw(d.seeds), 2, draw(st.sampled_from(layouts)))
            for shape, dtype in zip(of, dtypes, strict=True)
        ]

    masks = [
        d.Array(shape, draw(st.sampled_from((torch.bool, torch.uint8))), "mask", draw(d.seeds), 0.4,
                draw(st.sampled_from(d.LAYOUTS)))
        for shape in of
    ]  # fmt: skip
    return {
        "tensors": values(OWN_MEMORY),
        "masks": masks,
        "values": (draw(st.booleans()) and values(d.LAYOUTS)) or None,
    }


def run_masks(tensors: list[Tensor], masks: list[Tensor], values: list[Tensor] | None) -> tuple[Tensor, ...]:
    apply_masks_(tensors, masks, values)
    return tuple(x.clone() for x in tensors)


def plain_masks(tensors: list[Tensor], masks: list[Tensor], values: list[Tensor] | None) -> tuple[Tensor, ...]:
    reference.apply_masks_(tensors, masks, values or [])
    return tuple(tensors)


def spoil_masks(given: dict[str, Any]) -> dict[str, list[Any]]:
    tensors = given["tensors"]
    values = [replace(array, planted=()) for array in tensors]
    other = torch.float64 if values[0].dtype != torch.float64 else torch.float32
    return {
        "tensors": [x for x in wrong_list(tensors, own_memory=True) if x[0] in (None, 1.5)],
        "masks": [*wrong_list(given["masks"]), [replace(array, dtype=torch.int32) for array in given["masks"]]],
        "values": [*wrong_list(values), [replace(values[0], dtype=other), *values[1:]]],
    }


MASKS = Entry(
    name="apply_masks_",
    arguments=masks_arguments,
    run=run_masks,
    reference=plain_masks,
    spoil=spoil_masks,
    changed=("tensors",),
    exact=True,
)


@st.composite
def noise_arguments(draw: st.DrawFn, backend: str) -> dict[str, Any]:
    rows, columns = draw(d.shapes(d.SIZES, d.LONG_SIZES, elements=5_000 if backend == "triton" else 50_000))
    return {"rows": rows, "columns": columns, "seed": draw(st.integers(0, 2**63 - 1))}


def draw_noise(rows: int, columns: int, seed: int) -> Tensor:
    """As the kernels of the backend in force draw it."""
    if backends.resolve(torch.device("cpu")) == "triton":
        from ltfast.ops.noise.triton import half_normal as triton_noise

        return triton_noise(rows, columns, torch.tensor([seed]))
    out = torch.full((rows, columns), math.nan)
    backends.native().half_normal(out.data_ptr(), seed, rows, columns, torch.get_num_threads())
    return out


NOISE = Entry(
    name="half_normal",
    arguments=noise_arguments,
    run=draw_noise,
    reference=lambda rows, columns, seed: half_normal(rows, columns, torch.tensor([seed])).double(),
    tolerance=lambda place, dtype, arguments: (4e-7, 0),
)

globals().update(fuzz(TAYLOR, THRESHOLD, MASKS, NOISE))
