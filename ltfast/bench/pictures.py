"""Pictures of a bench: speed-ups, the share of the machine's limits, growth."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ltfast.bench.results import FLOORS

COLOURS = ("#0b6e99", "#d98324", "#7a9e3c", "#a4508b", "#777777", "#c0392b", "#3a3a8c")


def speedups(path: Path, results: Mapping[str, Any]) -> None:
    """How many times as long others take, a bar each."""
    cases: dict[str, list[Mapping[str, Any]]] = {}
    for row in results["rows"]:
        if row["implementation"] not in ("ltfast", *FLOORS):
            cases.setdefault(row["case"], []).append(row)
    names = sorted({row["implementation"] for rows in cases.values() for row in rows})
    colour = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    bars = sum(len(rows) for rows in cases.values())
    figure = Figure(figsize=(8, 1 + 0.17 * bars + 0.12 * len(cases)), layout="constrained")
    axis = figure.add_subplot()
    y, ticks = 0.0, []
    for case, rows in cases.items():
        ticks.append((y + (len(rows) - 1) / 2, case))
        for row in rows:
            axis.barh(y, row["times_ltfast"], color=colour[row["implementation"]], left=0, height=0.9)
            axis.text(row["times_ltfast"] * 1.05, y, f"{row['times_ltfast']:.3g}x", va="center", fontsize=6)
            y += 1
        y += 0.8
    axis.axvline(1, color="black", linewidth=1)
    axis.set(xscale="log", xlabel="times as long as ltfast, which is 1", ylim=(y - 0.4, -1))
    axis.set_yticks([at for at, _ in ticks], [case for _, case in ticks], fontsize=7)
    handles = [Patch(color=colour[name]) for name in names]
    axis.legend(handles, names, fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    _save(figure, path, results)


def roofline(path: Path, results: Mapping[str, Any]) -> None:
    """ltfast's steps under the machine's roof; an exponential counts as the matrix operations of its time."""
    limits = results["ceilings"]
    roof, slope = limits["flops"]["float32"], limits["bytes"]
    worth = roof / limits["exps"]
    rows = [row for row in results["rows"] if row["implementation"] == "ltfast" and row["dtype"] == "float32"]
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axis = figure.add_subplot()
    xs = []
    for number, op in enumerate(dict.fromkeys(row["op"] for row in rows)):
        points = []
        for row in (row for row in rows if row["op"] == op):
            # what only moves bytes is drawn where it meets the roof's slope
            work = max(row["flops"], worth * row["exps"]) or 0.25 * row["bytes"]
            points.append((work / row["bytes"], work / row["median_ms"] * 1e3))
        xs += [x for x, _ in points]
        marker = "osD^vP*X<>"[number % 10]
        colour = COLOURS[number % len(COLOURS)]
        axis.scatter([x for x, _ in points], [y for _, y in points], s=28, label=op, marker=marker, color=colour)
    span = [min(xs, default=0.1) / 3, max(xs, default=10.0) * 3]
    grid = [span[0] * (span[1] / span[0]) ** (i / 200) for i in range(201)]
    axis.plot(grid, [min(roof, slope * x) for x in grid], color="black", linewidth=1.2)
    axis.set(xscale="log", yscale="log", ylabel="operations a second")
    axis.set_xlabel(f"float32 matrix operations a byte (an exponential counts as {worth:.0f})")
    axis.legend(fontsize=7, ncols=2, frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    _save(figure, path, results)


def growth(path: Path, results: Mapping[str, Any]) -> None:
    """Time and memory of ltfast as one dimension grows; nothing where no op has been grown."""
    ops: Sequence[Mapping[str, Any]] = results["growth"]
    if not ops:
        return
    figure = Figure(figsize=(3 * len(ops), 5), layout="constrained")
    axes = figure.subplots(2, len(ops), squeeze=False)
    for column, op in enumerate(ops):
        for row, (key, unit) in enumerate((("median_ms", "ms"), ("peak_mib", "peak MiB"))):
            axis = axes[row][column]
            for name, points in op["lines"].items():
                known = [(p["size"] / op["base"][name], p[key]) for p in points if p[key]]
                if known:
                    label = f"{name} ({op['base'][name]:,})"
                    axis.plot([x for x, _ in known], [y for _, y in known], marker="o", markersize=3, label=label)
            if axis.lines:
                axis.set(xscale="log", yscale="log", ylabel=unit if column == 0 else "")
        axes[0][column].set_title(op["op"], fontsize=9)
        axes[0][column].legend(fontsize=6, frameon=False)
        axes[1][column].set_xlabel("times the size in brackets", fontsize=7)
    _save(figure, path, results)


def _save(figure: Figure, path: Path, results: Mapping[str, Any]) -> None:
    about = results["machine"]
    note = f"{about['machine']}, {about['threads']} threads, PyTorch {about['torch']}, commit {about['commit']}"
    figure.supxlabel(note, fontsize=6, color="grey")
    figure.savefig(path, dpi=130)
