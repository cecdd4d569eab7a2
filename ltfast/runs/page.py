"""`report.html`: what a finished run reports, on one page that needs no other file, no network and no script."""

from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ltfast.engine.report import MISTAKES, PICTURE
from ltfast.evaluation.predictions import PREDICTIONS, read_predictions
from ltfast.evaluation.result_plots import plot_by_frequency, plot_confusion, plot_reliability
from ltfast.files import replace_file

PAGE = "report.html"

_FIGURES = {
    "top1": "top-1 accuracy (%)",
    "top5": "top-5 accuracy (%)",
    "balanced_accuracy": "balanced accuracy (%)",
    "macro_f1": "macro F1 (%)",
    "weighted_f1": "weighted F1 (%)",
    "macro_auroc": "macro AUROC (%)",
    "macro_average_precision": "macro average precision (%)",
    "expected_calibration_error": "expected calibration error (%)",
    "negative_log_likelihood": "negative log-likelihood (nats)",
    "brier_score": "Brier score (0 to 2)",
}
_PICTURES = {  # by file: the title and the caption
    PICTURE: (
        "Accuracy of each class",
        "Bars: classes, coloured by group. Line: their training images.",
    ),
    "frequency.png": ("Recall and precision by frequency", "A point is a class."),
    "confusion.png": ("Confusion matrix", "A row has the test images of a class, a column those predicted as a class."),
    "reliability.png": ("Reliability", "Bars below the diagonal: the probabilities are too high."),
    MISTAKES: ("Most confident mistakes", "The predicted class, its probability, and the class of the image."),
}
_LISTED = 50  # up to so many classes are all shown
_WORST = 20


def write_page(folder: Path, metrics: Mapping[str, Any], command: str) -> None:
    """Draw the pictures of a finished run into its folder, and write `report.html` with them.

    Args:
        folder: of the run.
        metrics: the content of its `metrics.json`, with `classes`.
        command: the command that repeats the run.

    Raises:
        InputError: `predictions.csv` is damaged.
        OSError: a file cannot be read or written.
    """
    missing = list(_draw(folder, metrics))
    intervals = metrics.get("intervals") or {}
    classes = sorted(metrics["classes"], key=lambda one: -one["training_images"])
    tested = [one for one in classes if one["test_images"]]
    templates = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=templates, autoescape=True, undefined=StrictUndefined)
    environment.filters["one"] = _one_digit
    text = environment.get_template("page.html").render(
        name=folder.resolve().name,
        about=_about(metrics),
        intervals=bool(intervals),
        figures=[
            {"name": words, "value": _number(name, metrics[name]), "interval": _range(name, intervals.get(name))}
            for name, words in _FIGURES.items()
            if name in metrics
        ],
        groups=[*_groups(classes, metrics, intervals)],
        pictures=[
            {"title": title, "caption": caption, "content": b64encode((folder / name).read_bytes()).decode()}
            for name, (title, caption) in _PICTURES.items()
            if (folder / name).is_file()
        ],
        missing=missing,
        classes=classes,
        worst=sorted(tested, key=lambda one: one["f1"])[:_WORST] if len(classes) > _LISTED else [],
        command=command,
        settings={name: value for name, value in metrics["settings"].items() if name != "class_counts"},
    )
    replace_file(folder / PAGE, lambda file: file.write(text.encode(errors="replace")))


def _draw(folder: Path, metrics: Mapping[str, Any]) -> Iterator[str]:
    """Draw the pictures, and give the reasons for those that are missing."""
    classes = metrics["classes"]
    for name in ("frequency.png", "confusion.png", "reliability.png"):  # they may show older numbers
        (folder / name).unlink(missing_ok=True)
    plot_by_frequency(folder / "frequency.png", classes)
    if (folder / PREDICTIONS).is_file():
        predictions = read_predictions(folder / PREDICTIONS, [one["name"] for one in classes])
        plot_confusion(folder / "confusion.png", predictions, classes)
        plot_reliability(folder / "reliability.png", predictions, metrics.get("expected_calibration_error"))
        if not (folder / MISTAKES).is_file() and (predictions.labels != predictions.predicted).any():
            yield f"There is no {MISTAKES}: repeat the command of the run to draw it."
    else:
        yield f"There is no {PREDICTIONS}, from which the confusion matrix and the reliability are drawn."


def _about(metrics: Mapping[str, Any]) -> str:
    settings, counts = metrics["settings"], metrics["class_counts"]
    what = " on ".join(str(settings[name]) for name in ("method", "data") if name in settings)
    tested = sum(one["test_images"] for one in metrics["classes"])
    return (
        f"{what}: {len(counts):,} classes, {sum(counts):,} training images ({max(counts):,} to {min(counts):,} a "
        f"class), {tested:,} test images"
    )


def _groups(
    classes: Sequence[Mapping[str, Any]], metrics: Mapping[str, Any], intervals: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    for name in metrics.get("groups", dict.fromkeys(one["group"] for one in classes if one["group"] is not None)):
        counts = [one["training_images"] for one in classes if one["group"] == name]
        ends = dict.fromkeys(f"{end:,}" for end in (max(counts), min(counts))) if counts else {"no classes": None}
        yield {
            "name": name,
            "classes": len(counts),
            "range": " to ".join(ends),
            "value": metrics.get(name),
            "interval": _range(name, intervals.get(name)),
        }


def _one_digit(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _number(name: str, value: float | None) -> str:
    rate = name not in ("negative_log_likelihood", "brier_score")
    return _one_digit(value) if rate or value is None else f"{value:.3f}"


def _range(name: str, ends: Sequence[float] | None) -> str:
    return "" if ends is None else " to ".join(_number(name, end) for end in ends)
