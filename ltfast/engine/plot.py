"""The pictures of runs: accuracy and training images of each class, importance of parameters, choices of prompts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, StrMethodFormatter

from ltfast.picture import as_text, picture, short_name

_COLOURS = {"many": "#4878a8", "medium": "#d08c28", "few": "#c4513f"}
_RUNS = ("#9aa5b1", "#4878a8", "#c4513f", "#d08c28", "#5a9367", "#8466a8")  # the first run is the baseline
_INK, _GREY, _GRID = "#262626", "#6e6e6e", "#e6e6e6"
_NAMED = 30  # up to this many classes are drawn with their names and numbers
_HALO = [withStroke(linewidth=3, foreground="white")]


@picture
def plot_per_class(
    report: Mapping[str, Any], class_names: Sequence[str], groups: Mapping[str, Sequence[int]]
) -> Figure:
    """Draw the accuracy of each class as bars, classes sorted by count, and the counts as a line.

    Args:
        report: `per_class` and `class_counts` of length C, `top1`, and each group's accuracy.
        class_names: length C.
        groups: class indices of many, medium and few.
    """
    counts: Sequence[int] = report["class_counts"]
    order = sorted(range(len(counts)), key=lambda c: -counts[c])
    accuracy = [report["per_class"][c] for c in order]
    colour = {c: _COLOURS[name] for name, classes in groups.items() for c in classes}
    named = len(order) <= _NAMED
    x = range(len(order))

    figure = Figure(figsize=(9, 5), dpi=150, layout="constrained")
    bars = figure.add_subplot()
    heights = [value or 0.0 for value in accuracy]
    bars.bar(x, heights, width=0.72 if named else 1.0, color=[colour[c] for c in order], zorder=2)
    bars.set(ylim=(0, 112), xlim=(-0.6, len(order) - 0.4), ylabel="top-1 accuracy (%)", yticks=range(0, 101, 20))
    bars.set_xlabel(f"{'class, and its' if named else f'{len(order)} classes, by'} number of training images")
    bars.grid(axis="y", color=_GRID, zorder=0)

    line = bars.twinx()
    line.plot(
        x,
        [counts[c] for c in order],
        color=_INK,
        linewidth=1.5,
        marker="o" if named else None,
        markersize=4.5,
        path_effects=_HALO,
    )
    line.set_yscale("log")
    # the line takes 16 to 88 % of the height, above the numbers at the feet of the bars
    low, high = max(min(counts), 1), max(*counts, 1)  # a class may have no images
    span = (high / low) ** (1 / 0.72) if high > low else 10.0
    line.set_ylim(low / span**0.16, low * span**0.84)
    line.set_ylabel("training images (line, log scale)", color=_GREY)
    line.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    line.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    line.yaxis.set_minor_locator(NullLocator())
    line.yaxis.set_minor_formatter(NullFormatter())

    if named:
        for i, value in enumerate(accuracy):
            inside = value is not None and value >= 8
            bars.annotate(
                "no test\nimages" if value is None else f"{value:.0f}",
                (i, 0.0 if inside else value or 0.0),
                (0, 4),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=10,
                color="white" if inside else _INK,
            )
        names = [short_name(class_names[c]) for c in order]
        crowded = max(map(len, names)) * len(order) > 100
        labels = [f"{name}{' · ' if crowded else chr(10)}{counts[c]:,}" for name, c in zip(names, order, strict=True)]
        placed: dict[str, Any] = {
            "rotation": 45 if crowded else 0,
            "ha": "right" if crowded else "center",
            "fontsize": 9,
        }
        bars.set_xticks(x, labels, **placed, **as_text(labels))
        if crowded:
            for label in bars.get_xticklabels():
                label.set_rotation_mode("anchor")
    else:
        bars.set_xticks([])
    for axes, tint in ((bars, _INK), (line, _GREY)):
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0, colors=tint)

    known = {name: report[name] for name in groups if report[name] is not None}
    patches = [Patch(color=_COLOURS[name], label=f"{name}  {value:.1f} %") for name, value in known.items()]
    figure.legend(handles=patches, loc="outside upper right", ncols=3, frameon=False)
    top1 = "-" if report["top1"] is None else f"{report['top1']:.1f} %"
    figure.suptitle(f"All {top1}", x=0.012, ha="left", fontsize=12, fontweight="bold")
    return figure


@picture
def plot_comparison(rows: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw the accuracies of several runs side by side: of each class, sorted by training images, or of the many,
    medium and few classes if there are too many classes.

    Args:
        rows: for each run, `per_class` and `class_counts` of length C, with equal counts, and each group's accuracy.
    """
    counts: Sequence[int] = next(iter(rows.values()))["class_counts"]
    order = sorted(range(len(counts)), key=lambda c: -counts[c])
    named = len(order) <= _NAMED
    columns = [f"{counts[c]:,}" for c in order] if named else list(_COLOURS)
    figure = Figure(figsize=(9, 4.6), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    width = 0.84 / len(rows)
    labels = [short_name(Path(name).name) for name in rows]
    for i, (row, label) in enumerate(zip(rows.values(), labels, strict=True)):
        values = [row["per_class"][c] or 0.0 for c in order] if named else [row[group] or 0.0 for group in _COLOURS]
        places = [x + (i - (len(rows) - 1) / 2) * width for x in range(len(columns))]
        axes.bar(places, values, width=0.92 * width, color=_RUNS[i % len(_RUNS)], label=label, zorder=2)
    axes.set_xticks(range(len(columns)), columns)
    axes.set(ylim=(0, 104), yticks=range(0, 101, 20), ylabel="test images recognised (%)")
    axes.set_xlabel("classes, by number of training images" if named else "classes")
    axes.grid(axis="y", color=_GRID, zorder=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, colors=_INK)
    legend = figure.legend(loc="outside upper right", ncols=4, frameon=False)
    for text in legend.get_texts():
        text.set(**as_text(labels))
    return figure


@picture
def plot_importance(rows: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw the importance of each run's parameters for the many, medium and few classes, as shares of the sum.

    Shares are drawn because every importance is small where the loss is small.

    Args:
        rows: for each run, `method`, and `importance`, a number or None for each group.
    """
    figure = Figure(figsize=(max(5.0, 2.2 + 1.6 * len(rows)), 4.2), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    methods = [row["method"] for row in rows.values()]
    unique = len(set(methods)) == len(methods)
    for i, row in enumerate(rows.values()):
        values = {group: value for group, value in row["importance"].items() if value is not None}
        total = sum(values.values()) or 1.0
        for j, (group, value) in enumerate(values.items()):
            share = 100 * value / total
            x = i + (j - (len(values) - 1) / 2) * 0.26
            axes.bar(x, share, width=0.24, color=_COLOURS[group], zorder=2)
            axes.annotate(f"{share:.0f}", (x, share), (0, 2), textcoords="offset points", ha="center", fontsize=9)
    names = methods if unique else [f"{row['method']}\n{short_name(Path(name).name)}" for name, row in rows.items()]
    axes.set_xticks(range(len(rows)), names, **as_text(names))
    axes.set(ylim=(0, 112), yticks=range(0, 101, 20), ylabel="share of the parameters' importance (%)")
    axes.grid(axis="y", color=_GRID, zorder=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, colors=_INK)
    handles = [Patch(color=colour, label=f"{group} classes") for group, colour in _COLOURS.items()]
    figure.legend(handles=handles, loc="outside upper right", ncols=3, frameon=False)
    return figure


@picture
def plot_choices(shares: Sequence[Sequence[float]], class_names: Sequence[str]) -> Figure:
    """Draw which keys the test images of each class choose, with a row for each class and a column for each key.

    Args:
        shares: (C, S), the share of each key in the class's choices, in [0, 1].
        class_names: length C, in the order of the rows.
    """
    classes, keys = len(shares), len(shares[0])
    named = classes <= _NAMED
    figure = Figure(figsize=(max(4.5, 2 + 0.32 * keys), max(3.0, 1.4 + 0.32 * min(classes, 30))), dpi=150)
    figure.set_layout_engine("constrained")
    axes = figure.add_subplot()
    image = axes.imshow([[100 * share for share in row] for row in shares], cmap="Blues", vmin=0, aspect="auto")
    axes.set_xticks(range(keys), [str(i + 1) for i in range(keys)] if keys <= _NAMED else [""] * keys)
    names = [short_name(name) for name in class_names] if named else []
    axes.set_yticks(range(len(names)), names, **as_text(names))
    axes.set(xlabel="key", ylabel="class, the most training images first")
    axes.tick_params(length=0, colors=_INK)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, label="share of the class's choices (%)")
    return figure
