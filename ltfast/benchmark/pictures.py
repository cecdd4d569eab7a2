"""Pictures of a bench: speed-ups, shares of the machine's limits, and growth."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure

from ltfast.benchmark.results import FLOORS, largest, note
from ltfast.picture import as_text, picture, short_name

SLOWER, FASTER = "tab:blue", "tab:orange"  # than ltfast


@picture
def speedups(results: Mapping[str, Any]) -> Figure:
    """Draw the times of the other implementations as multiples of ltfast's, for the largest case of each op."""
    cases = {
        rows["ltfast"]["case"]: [row for name, row in rows.items() if name not in ("ltfast", *FLOORS)]
        for rows in largest(results).values()
        if len(rows) > 1
    }
    bars = sum(len(rows) for rows in cases.values())
    figure = Figure(figsize=(8, 0.8 + 0.17 * bars + 0.12 * len(cases)), layout="constrained")
    axis = figure.add_subplot()
    y, ticks = 0.0, []
    for case, rows in cases.items():
        ticks.append((y + (len(rows) - 1) / 2, case))
        for row in rows:
            times = row["times_ltfast"]
            axis.barh(y, times - 1, color=SLOWER if times >= 1 else FASTER, left=1, height=0.9)
            label = f"{short_name(row['implementation'], 40)}, {times:.3g}x"
            axis.text(max(times, 1) * 1.05, y, label, va="center", fontsize=6, **as_text([label]))
            y += 1
        y += 0.8
    axis.axvline(1, color="black", linewidth=1)
    axis.set(xscale="log", xlabel="time, as a multiple of the time of ltfast", ylim=(y - 0.4, -1))
    names = [short_name(case, 80) for _, case in ticks]
    axis.set_yticks([at for at, _ in ticks], names, fontsize=7, **as_text(names))
    axis.margins(x=0.3)  # room for the names
    axis.spines[["top", "right"]].set_visible(False)
    return _noted(figure, results)


@picture
def roofline(results: Mapping[str, Any]) -> Figure:
    """Draw ltfast's largest step of each op under the machine's roofline. An exponential counts as the number of matrix
    operations that take the same time."""
    limits = results["ceilings"]
    roof, slope = limits["flops"]["float32"], limits["bytes"]
    worth = roof / limits["exps"]
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axis = figure.add_subplot()
    xs = []
    for number, (op, rows) in enumerate(largest(results).items()):
        row = rows["ltfast"]
        # a step that only moves bytes is drawn on the slope of the roofline
        work = max(row["flops"], worth * row["exps"]) or 0.25 * row["bytes"]
        xs.append(work / row["bytes"])
        marker, colour = "osD^vP*X<>"[number % 10], colormaps["tab20"](number % 20)
        axis.scatter(xs[-1], work / row["median_ms"] * 1e3, s=40, label=op, marker=marker, color=[colour])
    span = [min(xs, default=0.1) / 3, max(xs, default=10.0) * 3]
    grid = [span[0] * (span[1] / span[0]) ** (i / 200) for i in range(201)]
    axis.plot(grid, [min(roof, slope * x) for x in grid], color="black", linewidth=1.2)
    axis.set(xscale="log", yscale="log", ylabel="operations a second")
    axis.set_xlabel(f"float32 matrix operations a byte (an exponential counts as {worth:.0f})")
    axis.legend(fontsize=7, ncols=2, frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    return _noted(figure, results)


@picture
def growth(results: Mapping[str, Any]) -> Figure | None:
    """Draw ltfast's time and memory as one dimension grows; None if the results have no growth."""
    ops: Sequence[Mapping[str, Any]] = results["growth"]
    if not ops:
        return None
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
            axis.set_visible(bool(axis.lines))
            if axis.lines:
                axis.set(xscale="log", yscale="log", ylabel=unit if column == 0 else "")
        axes[0][column].set_title(op["op"], fontsize=9)
        axes[0][column].legend(fontsize=6, frameon=False)
        axes[1][column].set_xlabel("times the size in brackets", fontsize=7)
    return _noted(figure, results)


def _noted(figure: Figure, results: Mapping[str, Any]) -> Figure:
    about = results["machine"]
    facts = f"{about['machine']}, {about['threads']} threads, PyTorch {about['torch']}, commit {about['commit']}"
    busiest = max((row.get("others") or 0 for row in results["rows"]), default=0)
    text = ", ".join(filter(None, [facts, note(busiest)]))
    figure.set_dpi(130)
    figure.supxlabel(short_name(text, 200), fontsize=6, color="grey", **as_text([text]))
    return figure
