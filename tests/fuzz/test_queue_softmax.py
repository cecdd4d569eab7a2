import math
from collections.abc import Mapping
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from fuzz import draw as d
from fuzz.runner import Entry, fuzz
from ltfast.ops import queue_softmax
from ops.conftest import Place

WIDTHS = (1, 2, 3, 5, 8, 16, 17, 31, 33, 64, 127, 128, 129, 256, 300)
KEYS = (0, *d.SIZES, 511, 1025, 2049)


@st.composite
def arguments(draw: st.DrawFn, backend: str) -> dict[str, Any]:
    few = backend == "triton"
    rows, columns, width = draw(d.shapes(d.SIZES, KEYS, WIDTHS, elements=10_000 if few else 100_000))
    of_keys = draw(st.sampled_from((*KEYS[1:12],))) if columns == 0 and draw(st.booleans()) else columns
    fills = ("unit", "unit", "uniform")  # products that overflow are no part of the promise
    valid = st.none() | st.integers(0, of_keys)
    count = valid.map(lambda n: n if n is None else d.Array((), torch.int64, "constant", scale=n))
    exclude = d.labels(rows, max(of_keys, 1), fill="columns") | d.labels(rows, 3 * max(of_keys, 1), fill="columns")
    scales = (1.0, 1.0, 1.0, 0.0, 10.0, 1e4, 1e-30)
    exclude = draw(st.none() | exclude)
    # the lse of a row may be finite beside an infinite key, or a NaN that the row leaves out; its mean may not
    broken = () if exclude is not None else (math.nan,) if few else d.BROKEN
    return {
        "queries": draw(
            d.floats(
                (rows, width),
                fills=fills,
                scales=scales,
                extremes=d.small_extremes,
                broken=(math.nan,) if few else d.BROKEN,  # infinite products are not caught there
            )
        ),
        "keys": draw(d.floats((of_keys, width), fills=fills, scales=scales, extremes=d.small_extremes, broken=broken)),
        "temperature": draw(d.number(0.01, 10, 0.07, 1.0)),
        "valid": draw(valid | count),
        "exclude": exclude,
    }


def plain(
    queries: Tensor, keys: Tensor, temperature: float, valid: int | Tensor | None, exclude: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The formula; a key that a row leaves out has no part in it, whatever it is."""
    keys = keys if valid is None else keys[: int(valid)]
    logits = queries @ keys.T / temperature
    here = torch.ones_like(logits, dtype=torch.bool)
    if exclude is not None:
        here = torch.arange(len(keys)) != exclude[:, None]
    alone = ~here.any(1)
    masked = logits.masked_fill(~here, -torch.inf).masked_fill(alone[:, None], 0)
    lse = masked.logsumexp(1) if masked.shape[1] else masked.sum(1)
    p = masked.softmax(1).masked_fill(~here, 0)
    mean = p @ keys
    broken = (mean - mean).sum(1).masked_fill(alone, 0).detach()
    return (lse + broken).masked_fill(alone, -torch.inf), mean.detach() + broken[:, None]


def tolerance(place: Place, dtype: torch.dtype, given: Mapping[str, Any]) -> tuple[float, float]:
    """The backward pass has the weights from the lse again, with its rounding."""
    queries, keys = given["queries"], given["keys"]
    lengths = [
        x.values().double().norm(dim=1).nan_to_num(0, 0, 0).amax().item() if x.shape[0] else 0 for x in (queries, keys)
    ]
    largest = max(lengths[0] * lengths[1] / given["temperature"], 1)
    if queries.dtype == torch.float64:
        return 1e-12, 1e-12 * (10 + largest)
    if place.backend == "triton" and torch.float16 in (queries.dtype, keys.dtype):
        return 2e-3, 1e-3 * (10 + largest)
    return 4e-6, 1e-6 * (10 + largest)


def spoil(given: dict[str, Any]) -> dict[str, list[Any]]:
    queries, keys = given["queries"], given["keys"]
    exclude = d.Array(queries.shape[:1], torch.int64, "labels")
    return {
        "queries": [*d.wrong_type(queries, also=(torch.int64,)), *d.wrong_shape(queries)],
        "keys": [
            *d.wrong_type(keys, also=(torch.int64,)),
            *d.wrong_shape(keys, empty=()),
            *d.wrong_size(keys, 1),
            *d.elsewhere(keys),
        ],
        "temperature": [*d.NOT_POSITIVE, None, "x"],
        "valid": [-1, keys.shape[0] + 1, d.Array((1,), torch.int64, "labels"), d.Array(()), 1.5, "x"],
        "exclude": [
            *d.wrong_type(exclude)[1:],
            *d.wrong_shape(exclude),
            *d.wrong_size(exclude, 0),
            *d.elsewhere(exclude),
        ],
    }


QUEUE_SOFTMAX = Entry(
    name="queue_softmax",
    arguments=arguments,
    run=queue_softmax,
    reference=plain,
    spoil=spoil,
    gradients=("queries", "keys"),
    tolerance=tolerance,
    # PyTorch's attention and its products; the keys are split over the threads
    loose=("contiguous arguments", "two threads"),
    weight=2,
)

globals().update(fuzz(QUEUE_SOFTMAX))
