"""The report of a run, `metrics.json` and `per_class.png`, and tables of reports."""

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from ltfast import terminal
from ltfast.engine.folds import over_folds
from ltfast.engine.plot import plot_per_class
from ltfast.engine.schema import integer, list_of, mapping, number, optional, plain, read_json, record, text
from ltfast.errors import InputError, InputNotFoundError
from ltfast.files import replace_file

METRICS, PICTURE, MISTAKES = "metrics.json", "per_class.png", "mistakes.png"

_ACCURACY = optional(number(0, 100))
_RATES = (
    *("top5", "balanced_accuracy", "macro_f1", "weighted_f1", "macro_auroc", "macro_average_precision"),
    "expected_calibration_error",
)
_CLASS = record(
    {
        "name": text,
        "group": optional(text),
        **dict.fromkeys(("training_images", "test_images", "confusions"), integer(0)),
        **dict.fromkeys(("precision", "recall", "f1"), _ACCURACY),
        "confused_with": optional(text),
    }
)
_SCHEMA = record(
    {
        **dict.fromkeys(("top1", "many", "medium", "few"), _ACCURACY),
        "per_class": list_of(_ACCURACY),
        "class_counts": list_of(integer(0)),
        "train_seconds": number(0),
        "loss_ms": optional(number(0)),
        "settings": mapping(plain),
    },
    # older files lack some of these
    may={
        "validation": mapping(plain),
        "epochs": mapping(mapping(integer(1))),
        "groups": mapping(record({"classes": integer(0), "minimum": integer(0)})),
        "step_ms": optional(number(above=0)),
        "step_images": optional(integer(1)),
        **dict.fromkeys(_RATES, _ACCURACY),
        **dict.fromkeys(("negative_log_likelihood", "brier_score"), optional(number(0))),
        "root": text,
        "intervals": optional(mapping(optional(list_of(number(0), 2)))),
        "class_names": list_of(text),
        "classes": list_of(_CLASS),
    },
)
_MINIMA = (101, 20)  # fewest training images of a class of many and of medium, in runs that have no other ones


def describe_groups(groups: Mapping[str, Sequence[int]], minima: Sequence[int] | None) -> dict[str, dict[str, int]]:
    """The groups of classes, as in `metrics.json`: the number of classes and the fewest training images of a class.

    Args:
        groups: class indices of each group, from the largest classes to the smallest.
        minima: the fewest images in each group but the last; None means 101 and 20.
    """
    least = (*(minima or _MINIMA), 0)
    return {name: {"classes": len(groups[name]), "minimum": m} for name, m in zip(groups, least, strict=False)}


def write_report(
    out: Path, report: Mapping[str, Any], class_names: Sequence[str], groups: Mapping[str, Sequence[int]]
) -> None:
    """Write `metrics.json`, which marks the run as finished, and then `per_class.png` into a run's folder.

    Raises:
        OSError: a file cannot be written.
    """
    for name in (PICTURE, MISTAKES):  # they show older numbers
        (out / name).unlink(missing_ok=True)
    write_json(out / METRICS, report)
    plot_per_class(out / PICTURE, report, class_names, groups)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically.

    Raises:
        OSError: the file cannot be written.
    """
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    replace_file(path, lambda file: file.write(text.encode()))


def read_metrics(folder: Path) -> dict[str, Any]:
    """Read a run's `metrics.json`.

    Raises:
        InputNotFoundError: the folder does not have the file.
        InputError: the file is not a metrics file; the message names the place in it.
    """
    path = folder / METRICS
    if not path.is_file():
        raise InputNotFoundError(f"run: there is no {path}: not a run's folder, or the run is not finished")
    try:
        metrics: dict[str, Any] = read_json(path)
        _SCHEMA(metrics, "")
    except ValueError as error:
        raise InputError(f"run: {path} is no metrics file: {error}") from error
    return metrics


def finished_report(out: Path, settings: Mapping[str, Any], class_counts: Sequence[int]) -> dict[str, Any] | None:
    """The content of `metrics.json` in a run's folder; None unless the run has these settings and class counts."""
    with suppress(FileNotFoundError, ValueError):
        report = read_metrics(out)
        whole = len(report["per_class"]) == len(class_counts)
        if whole and (report["settings"], report["class_counts"]) == (settings, list(class_counts)):
            return report
    return None


def table(rows: Mapping[str, Mapping[str, Any]], *, title: str | None = None) -> Table:
    """A table of the metrics of runs.

    Args:
        rows: metrics of each run, by name.
        title: shown above the table.

    Returns:
        Accuracies in percent, the best of each column in bold if there are several runs. If the runs have times: the
        time of the loss (forward and backward pass) in microseconds per image and in percent of the step's time, and
        the training time in seconds. Runs of the folds of a cross-validation have a row with their mean and standard
        deviation.
    """
    result = Table(
        title=title and escape(terminal.shown(title)),
        title_justify="left",
        caption=escape(_caption(rows)),
        caption_justify="left",
    )
    accuracies = {"many": "many", "medium": "medium", "few": "few", "top1": "all"}
    folds = over_folds(rows, accuracies)
    result.add_column("run", overflow="fold", min_width=min(15, max(map(len, (*rows, *folds)), default=0)))
    times = {name: [time(row) for row in rows.values()] for name, time in _TIMES.items()}
    times = {name: cells for name, cells in times.items() if any(cell != "-" for cell in cells)}
    for heading in (*accuracies.values(), *times):
        result.add_column(heading, justify="right", no_wrap=heading not in times)
    best = {key: max((v for row in rows.values() if (v := row[key]) is not None), default=None) for key in accuracies}
    for i, (name, row) in enumerate(rows.items()):
        cells, groups = [], _groups(row)
        for key in accuracies:
            value = row[key]
            text = "-" if value is None else f"{value:.1f}"
            if key in groups and groups[key]["classes"] == 0:
                text = "none"
            cells.append(f"[bold]{text}[/bold]" if len(rows) > 1 and value is not None and value == best[key] else text)
        cells += [column[i] for column in times.values()]
        result.add_row(escape(terminal.shown(name)), *cells)
    for label, cells in folds.items():
        result.add_row(escape(terminal.shown(label)), *cells, *[""] * len(times))
    return result


def _groups(row: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """The groups of a run's classes as in `describe_groups`; older reports lack them."""
    if "groups" in row:
        return row["groups"]
    most, least = _MINIMA
    counts = row.get("class_counts")
    bounds = {"many": (most, math.inf), "medium": (least, most), "few": (0, least)}
    return {
        name: {"classes": None if counts is None else sum(low <= n < high for n in counts), "minimum": low}
        for name, (low, high) in bounds.items()
    }


def _caption(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """What the groups are; several runs may have different ones."""
    borders = {name: tuple(group["minimum"] for group in _groups(row).values())[:2] for name, row in rows.items()}
    if len(set(borders.values())) > 1:
        each = (f"{terminal.shown(name)}: {', '.join(map(str, minima))}" for name, minima in borders.items())
        return f"the runs have different groups; fewest training images of many and medium: {'; '.join(each)}"
    most, least = next(iter(borders.values()))
    empty = any(group["classes"] == 0 for row in rows.values() for group in _groups(row).values())
    return f"many: {most} training images or more; few: fewer than {least}{'; none: no such classes' * empty}"


def _loss_per_image(row: Mapping[str, Any]) -> str:
    loss, images = row.get("loss_ms"), row.get("step_images")
    return "-" if loss is None or images is None else f"{1e3 * loss / images:.2f}"


def _loss_share(row: Mapping[str, Any]) -> str:
    loss, step = row.get("loss_ms"), row.get("step_ms")
    return "-" if loss is None or step is None else f"{100 * loss / step:.1f}"


def _training_time(row: Mapping[str, Any]) -> str:
    return "-" if (seconds := row.get("train_seconds")) is None else f"{seconds:.0f}"


_TIMES = {"loss µs/image": _loss_per_image, "loss % of step": _loss_share, "train s": _training_time}


def comparison(rows: Mapping[str, Mapping[str, Any]]) -> str | None:
    """A sentence about the gain of the best run over the first one on the rare classes.

    Args:
        rows: metrics of each run, by name.

    Returns:
        None unless there are several runs of the same classes, with accuracies of the rare ones.
    """
    metrics = list(rows.values())
    same = all(row["class_counts"] == metrics[0]["class_counts"] and _groups(row) == _groups(metrics[0])
               for row in metrics)  # fmt: skip
    if len(rows) < 2 or not same or any(row["few"] is None for row in metrics):
        return None
    first, *others = rows
    best = max(others, key=lambda name: rows[name]["few"])
    now, before = rows[best], rows[first]
    counts, least = sorted(now["class_counts"], reverse=True), _groups(now)["medium"]["minimum"]
    gain = now["few"] - before["few"]
    change = f"{abs(gain):.1f} percentage points {'more' if gain > 0 else 'fewer'}" if abs(gain) >= 0.05 else "as many"
    return (
        f"Trained on {len(counts)} classes with {counts[0]:,} to {counts[-1]:,} images each, {terminal.shown(best)} "
        f"recognises {now['few']:.1f} % of the test images of the rare classes (fewer than {least} training images), "
        f"{terminal.shown(first)} {before['few']:.1f} %: {change}. "
        f"Of all test images, it is {now['top1']:.1f} % and {before['top1']:.1f} %."
    )


def importance_table(rows: Mapping[str, Mapping[str, Any]]) -> Table:
    """A table of the importance of runs' parameters for each group of classes, with each group's share of the sum."""
    result = Table(title="importance of a parameter, the mean, and the groups' shares (%)", title_justify="left")
    result.add_column("run", overflow="fold")
    result.add_column("method")
    for group in ("many", "medium", "few"):
        result.add_column(group, justify="right")
    for name, row in rows.items():
        values = row["importance"]
        total = sum(value for value in values.values() if value is not None)
        cells = [
            "none" if value is None else f"{value:.1e} ({100 * value / total:.0f})" if total else "0"
            for value in values.values()
        ]
        result.add_row(escape(terminal.shown(name)), row["method"], *cells)
    return result


def weights_table(name: str, weights: Mapping[str, Sequence[float] | None]) -> Table:
    """A table of the mean weights that test images of each group give to each sub-model."""
    result = Table(title=f"mean weights of {escape(terminal.shown(name))}'s sub-models", title_justify="left")
    result.add_column("test images of")
    models = max(len(values) for values in weights.values() if values is not None)
    for i in range(models):
        result.add_column(str(i + 1), justify="right")
    for group, values in weights.items():
        result.add_row(group, *(["-"] * models if values is None else [f"{value:.2f}" for value in values]))
    return result
