"""What the cases are made of: arrays described in a line, so that a failing case can be read and made again."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LABELS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
LAYOUTS = ("contiguous", "offset", "padded", "steps", "reversed", "expanded first", "expanded last", "expanded")
SIZES = (1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 97, 127, 128, 129, 255, 256, 257)
LONG_SIZES = (*SIZES, 509, 512, 513, 1023, 1024, 1025, 2047, 2049, 4096, 4099, 8192, 8193, 9001)

seeds = st.integers(0, 2**32 - 1)


@dataclass(frozen=True)
class Array:
    """A tensor to be: ``fill`` and ``seed`` give its values, times ``scale``; some are ``planted`` at flat indices."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    fill: str = "normal"
    seed: int = 0
    scale: float = 1.0
    layout: str = "contiguous"
    planted: tuple[tuple[int, float], ...] = ()

    def __repr__(self) -> str:
        said = [f.name for f in fields(self) if f.name == "shape" or getattr(self, f.name) != f.default]
        return f"Array({', '.join(f'{name}={getattr(self, name)!r}' for name in said)})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))

    def values(self) -> Tensor:
        """Contiguous."""
        generator = torch.Generator().manual_seed(self.seed)
        values = FILLS[self.fill](self, generator)
        if self.dtype.is_floating_point and values.is_floating_point():
            limit = torch.finfo(self.dtype).max
            values = values.clamp(-limit, limit)
        values = values.to(self.dtype)
        for index, value in self.planted:
            if values.numel():
                values.view(-1)[index % values.numel()] = value
        return values

    def storage(self) -> tuple[Tensor, tuple[int, ...], int]:
        """Memory for it, full of NaN (or of numbers that are no label), the strides and the offset."""
        sizes = [max(size, 1) for size in self.shape]
        order = list(range(len(sizes)))
        if self.layout == "reversed":
            order.reverse()
        if self.layout == "channels last":
            order = [0, *order[2:], 1]
        strides, total = [0] * len(sizes), 2 if self.layout == "steps" else 1
        for axis in reversed(order):
            still = self.layout == "expanded" or (axis, self.layout) in (
                (0, "expanded first"),
                (len(sizes) - 1, "expanded last"),
            )
            strides[axis] = 0 if still else total
            if not still:
                total *= sizes[axis] + (self.layout in ("padded", "steps"))
        offset = {"offset": 3, "padded": 1, "steps": 1}.get(self.layout, 0)
        flat = torch.empty(total + offset + 5, dtype=self.dtype)
        flat.fill_(math.nan if self.dtype.is_floating_point else True if self.dtype == torch.bool else 77)
        return flat, tuple(strides), offset

    def make(self) -> tuple[Tensor, Tensor]:
        """The tensor, and the whole of its memory."""
        flat, strides, offset = self.storage()
        values = self.values()
        for axis, stride in enumerate(strides):  # an expanded axis has its first values everywhere
            if stride == 0 and values.numel():
                values = values.narrow(axis, 0, 1)
        flat.as_strided(values.shape, strides, offset).copy_(values)
        return flat.as_strided(self.shape, strides, offset), flat


def _normal(array: Array, generator: torch.Generator) -> Tensor:
    return array.scale * torch.randn(array.shape, dtype=torch.float64, generator=generator)


def _uniform(array: Array, generator: torch.Generator) -> Tensor:
    return array.scale * (2 * torch.rand(array.shape, dtype=torch.float64, generator=generator) - 1)


def _positive(array: Array, generator: torch.Generator) -> Tensor:
    return array.scale * torch.rand(array.shape, dtype=torch.float64, generator=generator)


def _unit(array: Array, generator: torch.Generator) -> Tensor:
    values = torch.randn(array.shape, dtype=torch.float64, generator=generator)
    return array.scale * torch.nn.functional.normalize(values, dim=-1)


def _wide(array: Array, generator: torch.Generator) -> Tensor:
    """Of all magnitudes."""
    exponent = 76 * torch.rand(array.shape, dtype=torch.float64, generator=generator) - 38
    return array.scale * 10**exponent * torch.randn(array.shape, dtype=torch.float64, generator=generator).sign()


def _extreme(array: Array, generator: torch.Generator) -> Tensor:
    values = torch.tensor(finite_extremes(array.dtype), dtype=torch.float64)
    return values[torch.randint(len(values), array.shape, generator=generator)]


def _labels(array: Array, generator: torch.Generator) -> Tensor:
    """Integers in [0, scale), or [-1, scale) for "columns"."""
    low = -1 if array.fill == "columns" else 0
    return torch.randint(low, max(int(array.scale), low + 1), array.shape, generator=generator)


FILLS: dict[str, Callable[[Array, torch.Generator], Tensor]] = {
    "normal": _normal,
    "uniform": _uniform,
    "positive": _positive,
    "unit": _unit,
    "wide": _wide,
    "extreme": _extreme,
    "constant": lambda array, generator: torch.full(array.shape, array.scale, dtype=torch.float64),
    "labels": _labels,
    "columns": _labels,
    "eighths": lambda array, generator: torch.randint(9, array.shape, generator=generator).double() / 8 * array.scale,
    "concentrations": lambda array, generator: array.scale * 10 ** (2.5 * _uniform(replace(array, scale=1), generator)),
    "mask": lambda array, generator: torch.rand(array.shape, generator=generator) < array.scale,
}


def finite_extremes(dtype: torch.dtype) -> tuple[float, ...]:
    info = torch.finfo(dtype)
    smallest = info.smallest_normal * info.eps
    return info.max, -info.max, info.smallest_normal, -info.smallest_normal, smallest, -smallest, 0.0, -0.0, 1.0


def small_extremes(dtype: torch.dtype) -> tuple[float, ...]:
    return finite_extremes(dtype)[2:]


BROKEN = (math.nan, math.inf, -math.inf)


@st.composite
def floats(
    draw: st.DrawFn,
    shape: Sequence[int],
    *,
    dtypes: Sequence[torch.dtype] = FLOATS,
    fills: Sequence[str] = ("normal",),
    scales: Sequence[float] = (1.0,),
    extremes: Callable[[torch.dtype], Sequence[float]] | None = finite_extremes,
    broken: Sequence[float] = BROKEN,
    layouts: Sequence[str] = LAYOUTS,
) -> Array:
    """Floating-point numbers; in one case of ten a few finite extremes among them, in one of six NaN or infinities."""
    dtype, fill = draw(st.sampled_from(dtypes)), draw(st.sampled_from(fills))
    if fill == "unit":  # what is expanded along a row is not of length 1
        layouts = [layout for layout in layouts if layout not in ("expanded last", "expanded")]
    array = Array(tuple(shape), dtype, fill, draw(seeds), draw(st.sampled_from(scales)), draw(st.sampled_from(layouts)))
    kind = draw(st.integers(0, 29))
    if broken and kind >= 25:
        special = broken
    elif extremes and kind >= 22:
        special = extremes(dtype)
    else:
        return array
    number = draw(st.integers(1, 3))
    return replace(
        array, planted=tuple((draw(st.integers(0, 2**16)), draw(st.sampled_from(special))) for _ in range(number))
    )


@st.composite
def labels(
    draw: st.DrawFn,
    rows: int,
    classes: int,
    *,
    dtypes: Sequence[torch.dtype] = LABELS,
    fill: str = "labels",
) -> Array:
    """Integers in [0, classes), of a dtype that holds them."""
    fitting = [
        dtype
        for dtype in dtypes
        if torch.iinfo(dtype).max >= classes - 1 and not (fill == "columns" and dtype == torch.uint8)
    ]
    layout = draw(st.sampled_from(("contiguous", "offset", "steps", "expanded")))
    return Array((rows,), draw(st.sampled_from(fitting)), fill, draw(seeds), classes, layout)


@st.composite
def labels_and_ignored(draw: st.DrawFn, rows: int, classes: int) -> tuple[Array, int]:
    """Labels and the one that is ignored: a class, or a value that no class has and some rows do."""
    array, ignored = draw(labels(rows, classes)), draw(st.sampled_from((-100, -100, -100, -7, 0)))
    if ignored < 0 and array.dtype != torch.uint8:
        places = draw(st.lists(st.integers(0, 2**16), max_size=3))
        array = replace(array, planted=tuple((place, ignored) for place in places))
    return array, ignored


@st.composite
def shapes(draw: st.DrawFn, *axes: Sequence[int], elements: int) -> tuple[int, ...]:
    """One size of each axis, no more elements in all than that unless the smallest sizes have more."""
    sizes: dict[int, int] = {}
    for axis in draw(st.permutations(range(len(axes)))):
        room = elements // max(math.prod(sizes.values()), 1)
        sizes[axis] = draw(st.sampled_from([size for size in axes[axis] if size <= max(room, min(axes[axis]))]))
    return tuple(sizes[axis] for axis in range(len(axes)))


def number(low: float, high: float, *also: float) -> st.SearchStrategy[float]:
    """In [low, high], often one of those that matter."""
    return st.one_of(st.sampled_from((low, high, *also)), st.floats(low, high, allow_nan=False))


# What to put in the place of a good argument, so that it must be refused.


def wrong_type(array: Array, *, also: Sequence[torch.dtype] = ()) -> list[Any]:
    dtypes = (torch.complex64, torch.bool, *also)
    return [None, [1.0], 1.5, "x", *(Tensorlike(replace(array, planted=()), dtype) for dtype in dtypes)]


def wrong_shape(array: Array, *, empty: Sequence[int] | None = None) -> list[Any]:
    """``empty``: the axes that must not have the size 0, by default all."""
    wrong = [replace(array, shape=(*array.shape, 1)), replace(array, shape=array.shape[1:])]
    axes = range(len(array.shape)) if empty is None else empty
    return wrong + [replace(array, shape=(*array.shape[:i], 0, *array.shape[i + 1 :])) for i in axes]


def wrong_size(array: Array, axis: int) -> list[Any]:
    size = array.shape[axis]
    return [
        replace(array, shape=(*array.shape[:axis], other, *array.shape[axis + 1 :])) for other in (size + 1, 2 * size)
    ]


def wrong_label(array: Array, classes: int) -> list[Any]:
    """Out of range."""
    signed = replace(array, dtype=torch.int64, layout="contiguous")
    return [replace(signed, planted=((array.seed, value),)) for value in (-1, classes, -(2**62), 2**62)]


NOT_POSITIVE = (0.0, -0.0, -1.0, math.nan, math.inf, -math.inf)
NOT_FINITE = (math.nan, math.inf, -math.inf)


@dataclass(frozen=True)
class Tensorlike:
    """An array that was converted to a dtype that no op takes, or that lies on another device."""

    array: Array
    dtype: torch.dtype | None = None
    device: str = "cpu"

    def make(self) -> tuple[Tensor, Tensor]:
        tensor, flat = self.array.make()
        return tensor.to(self.device, self.dtype), flat


def elsewhere(array: Array) -> list[Any]:
    return [Tensorlike(array, device="meta")]
