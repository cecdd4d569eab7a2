"""The pictures of what a run predicts for its test images."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ltfast.evaluation.figures import BINS
from ltfast.evaluation.predictions import Predictions
from ltfast.picture import as_text, picture, short_name

MOST_MISTAKES = 24

_BLUE, _RED, _INK, _GREY, _GRID, _NONE = "#4878a8", "#c4513f", "#262626", "#6e6e6e", "#e6e6e6", "#d9d9d9"
_NAMED, _NUMBERED = 40, 20  # up to so many classes have their names, and the cells their numbers
_BLOCKS = 100  # with more classes, neighbours share a row and a column
_COLUMNS = 6  # of the contact sheet


@picture
def plot_confusion(predictions: Predictions, classes: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the confusion matrix: of the test images in each row, how many per cent are predicted as each column.

    Classes are sorted by their training images, the most first. Many classes are joined to blocks of neighbours, and a
    cell is the mean of its classes' rows.

    Args:
        predictions: of the test images.
        classes: from `ltfast.evaluation.measures.class_records`, length C.
    """
    order = _by_frequency(classes)
    width = -(-len(order) // _BLOCKS) if len(order) > 2 * _BLOCKS else 1  # classes of a row
    matrix = _shares(predictions, order, width)
    size = len(matrix)
    named = len(order) <= _NAMED
    side = min(10.0, max(5.5, 2.5 + 0.32 * size)) if named else 8.5
    figure = Figure(figsize=(side + 1, side), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.set_facecolor(_NONE)
    # the root shows small shares: most classes have many wrong ones to be confused with
    image = axes.imshow(
        np.ma.masked_invalid(matrix), cmap="Blues", norm=PowerNorm(0.5, 0, 100), interpolation="nearest"
    )
    if named:
        names = [short_name(classes[c]["name"], 20) for c in order]
        axes.set_xticks(range(size), names, rotation=90, fontsize=8, **as_text(names))
        axes.set_yticks(range(size), names, fontsize=8, **as_text(names))
    else:
        _mark_groups(axes, [classes[c]["group"] for c in order], width)
    if len(order) <= _NUMBERED:
        for i, j in np.argwhere(matrix >= 0.5):
            colour = "white" if matrix[i, j] > 35 else _INK
            axes.text(j, i, f"{matrix[i, j]:.0f}", ha="center", va="center", fontsize=8, color=colour)
    joined = f" ({width} classes a row and column)" if width > 1 else ""
    axes.set(xlabel="predicted class", ylabel=f"class of the test image, the most training images first{joined}")
    axes.tick_params(length=0, colors=_INK)
    axes.spines[:].set_visible(False)
    grey = "; grey: no test images" if np.isnan(matrix).any() else ""
    figure.colorbar(
        image, label=f"share of the row's test images (%){grey}", shrink=0.7, ticks=[0, 1, 5, 10, 25, 50, 100]
    )
    return figure


@picture
def plot_reliability(predictions: Predictions, error: float | None) -> Figure | None:
    """Draw the accuracy of the predictions by their probability, in the bins of the calibration error.

    Args:
        predictions: of N test images.
        error: the expected calibration error in percent; without it, nothing is drawn.
    """
    if error is None or not len(predictions.labels):
        return None
    hits = predictions.predicted == predictions.labels
    bins = np.minimum((BINS * predictions.confidence).astype(int), BINS - 1)
    count = np.bincount(bins, minlength=BINS)
    known = count > 0
    accuracy, confidence = (
        100 * np.bincount(bins, values, BINS)[known] / count[known] for values in (hits, predictions.confidence)
    )
    centres = 100 * (np.arange(BINS) + 0.5) / BINS
    figure = Figure(figsize=(6, 6.4), dpi=150, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
    wide = 92 / BINS
    upper.bar(centres[known], accuracy, wide, color=_BLUE, label="accuracy", zorder=2)
    upper.plot((0, 100), (0, 100), color=_GREY, linewidth=1, linestyle="--", label="calibrated", zorder=3)
    upper.plot(confidence, accuracy, "o", color=_INK, markersize=4, label="mean probability of a bin", zorder=4)
    upper.set(xlim=(0, 100), ylim=(0, 103), ylabel="accuracy (%)", yticks=range(0, 101, 20))
    figure.legend(*upper.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    above = float((predictions.confidence.mean() - hits.mean()) * 100)
    kind = "over" if above > 0 else "under"
    upper.set_title(
        f"expected calibration error {error:.1f} %, {kind}confident by {abs(above):.1f} points in the mean",
        loc="left",
        fontsize=10,
    )
    lower.bar(centres, 100 * count / count.sum(), wide, color=_BLUE, zorder=2)
    lower.set(ylabel="images (%)", xlabel="probability of the predicted class (%)", xticks=range(0, 101, 20))
    _plain(upper, lower)
    return figure


@picture
def plot_by_frequency(classes: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Draw the recall and the precision of each class by its number of training images, and their running means.

    Args:
        classes: from `ltfast.evaluation.measures.class_records`, length C. Those without training images are drawn
            at 1.
    """
    figure = Figure(figsize=(9, 4.4), dpi=150, layout="constrained")
    counts = np.array([max(one["training_images"], 1) for one in classes])
    both = figure.subplots(1, 2, sharex=True, sharey=True)
    drawn = False
    for axes, name, colour in zip(both, ("recall", "precision"), (_BLUE, _RED), strict=True):
        known = np.array([one[name] is not None for one in classes])
        axes.set_title(f"{name} (%)", loc="left", fontsize=11)
        if not known.any():
            continue
        drawn = True
        x, y = counts[known], np.array([one[name] for one in classes if one[name] is not None])
        crowd = min(1.0, 8 / len(x) ** 0.5)
        axes.scatter(x, y, s=12 + 30 * crowd, color=colour, alpha=0.25 + 0.5 * crowd, linewidths=0, zorder=2)
        axes.plot(*_running_mean(x, y), color=_INK, linewidth=2, zorder=3, label="running mean")
    if not drawn:
        return None
    both[0].set_xscale("log")
    both[0].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if counts.max() < 200 * counts.min() else (1,)))
    both[0].xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    both[0].xaxis.set_minor_formatter(NullFormatter())
    both[0].set(ylim=(-3, 103), yticks=range(0, 101, 20))
    both[0].legend(loc="lower right", frameon=False, fontsize=9)
    figure.supxlabel("training images of the class (log scale)", fontsize=10)
    _plain(*both)
    return figure


class Mistake(NamedTuple):
    """A test image with a wrong prediction.

    Attributes:
        image: the image; None if it cannot be read.
        label, predicted: the names of its class and of the predicted one.
        probability: that of the predicted class, in [0, 1].
    """

    image: Image.Image | None
    label: str
    predicted: str
    probability: float


@picture
def plot_mistakes(mistakes: Sequence[Mistake]) -> Figure | None:
    """Draw a contact sheet of wrong predictions, in rows of six. Without any, nothing is drawn."""
    if not mistakes:
        return None
    rows = -(-len(mistakes) // _COLUMNS)
    figure = Figure(figsize=(1.62 * _COLUMNS, 2.12 * rows), dpi=150)
    words = [short_name(name, 20) for one in mistakes for name in (one.label, one.predicted)]
    plain = as_text(words)
    for place, one in enumerate(mistakes):
        row, column = divmod(place, _COLUMNS)
        left, top = (column + 0.04) / _COLUMNS, 1 - (row + 0.02) / rows
        axes = figure.add_axes((left, top - 0.70 / rows, 0.92 / _COLUMNS, 0.70 / rows))
        axes.set_axis_off()
        if one.image is None:
            axes.text(0.5, 0.5, "cannot be read", ha="center", va="center", fontsize=8, color=_GREY)
        else:
            tile = ImageOps.contain(one.image.convert("RGB"), (224, 224), Image.Resampling.BOX)
            axes.imshow(np.asarray(tile), interpolation="nearest")
            axes.set_anchor("S")
        middle = left + 0.46 / _COLUMNS
        lines = (
            (short_name(one.predicted, 20), _RED, 0.735),
            (f"predicted, {100 * one.probability:.1f} %", _GREY, 0.815),
            (f"is {short_name(one.label, 20)}", _INK, 0.895),
        )
        for text, colour, down in lines:
            figure.text(middle, 1 - (row + down) / rows, text, ha="center", va="top", fontsize=8, color=colour, **plain)
    return figure


def _by_frequency(classes: Sequence[Mapping[str, Any]]) -> list[int]:
    return sorted(range(len(classes)), key=lambda c: -classes[c]["training_images"])


def _shares(predictions: Predictions, order: Sequence[int], width: int) -> NDArray[np.float64]:
    """The confusion matrix in percent; each class with test images has the same weight in its row."""
    size = -(-len(order) // width)
    block = np.empty(len(order), np.int64)
    block[list(order)] = np.arange(len(order)) // width
    tested = np.bincount(predictions.labels, minlength=len(order))
    cells = block[predictions.labels] * size + block[predictions.predicted]
    sums = np.bincount(cells, 100 / tested[predictions.labels], minlength=size * size).reshape(size, size)
    members = np.bincount(block[tested > 0], minlength=size)
    with np.errstate(invalid="ignore"):
        shares: NDArray[np.float64] = sums / members[:, None]
    return shares


def _mark_groups(axes: Axes, groups: Sequence[str | None], width: int) -> None:
    """Name the groups of sorted classes on both axes, and draw lines between them."""
    starts = [i for i in range(len(groups)) if i == 0 or groups[i] != groups[i - 1]]
    ends = [*starts[1:], len(groups)]
    places = [(start + end) / 2 / width - 0.5 for start, end in zip(starts, ends, strict=True)]
    names = [f"{groups[start] or ''}\n{end - start}" for start, end in zip(starts, ends, strict=True)]
    axes.set_xticks(places, names, fontsize=9)
    axes.set_yticks(places, names, fontsize=9)
    for start in starts[1:]:
        for line in (axes.axhline, axes.axvline):
            line(start / width - 0.5, color=_GREY, linewidth=0.8)


def _running_mean(x: NDArray[np.int64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The mean of the values around each point of the log scale, with a Gaussian of a tenth of the range."""
    logs = np.log(x)
    points = np.linspace(logs.min(), logs.max(), 200)
    spread = max((logs.max() - logs.min()) / 10, 0.1)
    weights = np.exp(-0.5 * ((points[:, None] - logs) / spread) ** 2)
    return np.exp(points), weights @ y / weights.sum(1)


def _plain(*several: Axes) -> None:
    for axes in several:
        axes.grid(axis="y", color=_GRID, zorder=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(which="both", length=0, colors=_INK)
