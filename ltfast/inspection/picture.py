"""The picture of the images of each class."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from ltfast.picture import as_text, picture, short_name

_COLOURS = {"many": "#4878a8", "medium": "#d08c28", "few": "#c4513f"}
_INK, _GRID = "#262626", "#e6e6e6"
_NAMED = 40  # up to this many classes are drawn with their names and numbers


@picture
def plot_counts(classes: Sequence[Mapping[str, Any]], minima: Sequence[int]) -> Figure:
    """Draw the number of training images of each class, the largest class first, in the colour of its group.

    Args:
        classes: `name`, `training` and `group` of each class.
        minima: the fewest images of a class of many and of medium.
    """
    ordered = sorted(classes, key=lambda row: -row["training"])
    counts = [row["training"] for row in ordered]
    named = len(ordered) <= _NAMED
    figure = Figure(figsize=(max(9.0, 0.32 * len(ordered)) if named else 9.0, 5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.bar(
        range(len(counts)),
        counts,
        width=0.76 if named else 1.0,
        color=[_COLOURS[row["group"]] for row in ordered],
        linewidth=0,
        zorder=2,
    )
    if max(counts) > 20 * max(min(counts), 1):
        axes.set_yscale("log")
        axes.set_ylim(max(min(counts), 1) * 0.6, max(counts) * 1.8)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(0, max(counts) * 1.12)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlim(-0.6, len(counts) - 0.4)
    axes.set_ylabel("training images" + (" (log scale)" if axes.get_yscale() == "log" else ""))
    axes.grid(axis="y", color=_GRID, zorder=0)
    if named:
        for i, count in enumerate(counts):
            axes.annotate(f"{count:,}", (i, count), (0, 2), textcoords="offset points", ha="center", fontsize=8)
        names = [short_name(row["name"]) for row in ordered]
        crowded = max(map(len, names)) * len(names) > 100
        placed: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
        axes.set_xticks(range(len(names)), names, fontsize=9, **placed, **as_text(names))
    else:
        axes.set_xlabel(f"{len(counts):,} classes, by their number of training images")
        for least in minima:  # the borders of the groups
            inside = sum(count >= least for count in counts)
            if 0 < inside < len(counts):
                axes.axvline(inside - 0.5, color=_INK, linewidth=0.8, linestyle=":", zorder=3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(which="both", length=0, colors=_INK)
    sizes = {name: sum(row["group"] == name for row in ordered) for name in _COLOURS}
    most, least = minima
    meaning = {"many": f"{most:,} or more", "medium": f"{least:,} to {most - 1:,}", "few": f"fewer than {least:,}"}
    patches = [Patch(color=_COLOURS[name], label=f"{name} ({meaning[name]}): {size:,} classes") for name, size in
               sizes.items() if size]  # fmt: skip
    figure.legend(handles=patches, loc="outside upper right", ncols=3, frameon=False)
    return figure
