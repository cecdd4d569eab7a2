from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from fuzz import draw as d
from fuzz.runner import Entry, fuzz
from ltfast.ops import class_sums, patch_roi_pool
from ops.conftest import Place
from ops.test_roi_pool import TOLERANCE


@st.composite
def class_sums_arguments(draw: st.DrawFn, backend: str) -> dict[str, Any]:
    rows, width = draw(d.shapes(d.SIZES, d.LONG_SIZES, elements=5_000 if backend == "triton" else 50_000))
    classes = draw(st.sampled_from(d.SIZES))
    fills, scales = ("normal", "unit", "constant"), (1.0, 1.0, 1e4, 1e-30, 1e30)
    return {
        "features": draw(d.floats((rows, width), fills=fills, scales=scales, extremes=d.small_extremes)),
        "labels": draw(d.labels(rows, classes)),
        "num_classes": classes,
    }


def plain_sums(features: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    sums = features.new_zeros(num_classes, features.shape[1]).index_add(0, labels.long(), features)
    return sums, labels.long().bincount(minlength=num_classes)


def spoil_class_sums(given: dict[str, Any]) -> dict[str, list[Any]]:
    features, labels = given["features"], given["labels"]
    return {
        "features": [*d.wrong_type(features, also=(torch.int64,)), *d.wrong_shape(features, empty=(1,))],
        "labels": [
            *d.wrong_type(labels),
            *d.wrong_shape(labels),
            *d.wrong_size(labels, 0),
            *d.elsewhere(labels),
            *d.wrong_label(labels, given["num_classes"]),
        ],
        "num_classes": [0, -1, 2.5, None, "x"],
    }


CLASS_SUMS = Entry(
    name="class_sums",
    arguments=class_sums_arguments,
    run=class_sums,
    reference=plain_sums,
    spoil=spoil_class_sums,
    labels=("labels",),
    gradients=("features",),
)


@st.composite
def roi_arguments(draw: st.DrawFn, backend: str) -> dict[str, Any]:
    few = backend == "triton"
    images, channels, height, width = draw(
        d.shapes(
            (1, 2, 3),
            (1, 2, 3, 5, 16, 67, 1025),
            (1, 2, 3, 7, 8, 13),
            (1, 2, 5, 7, 16, 17),
            elements=500 if few else 8000,
        )
    )
    boxes = draw(st.sampled_from((0, 1, 2, 5, 17)[: 4 if few else 5]))
    features = d.floats(
        (images, channels, height, width),
        fills=("normal", "normal", "constant", "extreme"),
        scales=(1.0, 1.0, 1e30, 0.0),
        layouts=(*d.LAYOUTS, "channels last", "channels last"),
    )
    corners = d.floats((images, boxes, 4), fills=("normal", "eighths", "positive"), scales=(4.0, 8.0, 16.0, 1e4, 1e30))
    return {
        "features": draw(features),
        "boxes": draw(corners),
        "spatial_scale": draw(st.sampled_from((1.0, 1.0, 0.5, 0.03125, 2.0))),
        "output_size": draw(st.sampled_from((1, 2, 2, 3))),
        "sampling_ratio": draw(st.sampled_from((-1, -1, 0, 1, 2, 3, 50))),
        "aligned": draw(st.booleans()),
    }


def roi_tolerance(place: Place, dtype: torch.dtype, given: Mapping[str, Any]) -> tuple[float, float]:
    if place.backend == "triton" and dtype == torch.float64:
        dtype = torch.float32
    return TOLERANCE[dtype], TOLERANCE[dtype]


def spoil_roi(given: dict[str, Any]) -> dict[str, list[Any]]:
    features, boxes = given["features"], given["boxes"]
    return {
        "features": [
            *d.wrong_type(features, also=(torch.int64,)),
            *d.wrong_shape(replace(features, layout="contiguous")),
        ],
        "boxes": [
            *d.wrong_type(boxes, also=(torch.int64,)),
            *d.wrong_shape(boxes, empty=()),
            *d.wrong_size(boxes, 0),
            *d.wrong_size(boxes, 2),
            *d.elsewhere(boxes),
        ],
        "spatial_scale": [*d.NOT_POSITIVE, None],
        "output_size": [0, -1, 1.5, None],
        "sampling_ratio": [-2, 0.5, None],
    }


ROI_POOL = Entry(
    name="patch_roi_pool",
    arguments=roi_arguments,
    run=patch_roi_pool,
    spoil=spoil_roi,
    gradients=("features",),
    tolerance=roi_tolerance,
    nan_may_stop=True,
    size=lambda given: given["features"].values().nan_to_num(0, 0, 0).abs().max().item(),
    loose=("contiguous arguments",),  # channels_last is read in place, and summed in another order
)

globals().update(fuzz(CLASS_SUMS, ROI_POOL))
