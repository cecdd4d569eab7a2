"""`predictions.csv`: a line for each test image of a run."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ltfast.errors import InputError
from ltfast.evaluation.csv_lines import digits, line
from ltfast.evaluation.outcome import Outcome
from ltfast.files import replace_file

PREDICTIONS = "predictions.csv"

_COLUMNS = ("path", "label", "class", "probability", "label_probability")


@dataclass(frozen=True)
class Predictions:
    """The content of `predictions.csv`.

    Attributes:
        paths: the file of each image, or its place in the test images, length N.
        labels, predicted: class indices, (N,) int64.
        confidence, label_probability: the probabilities of the predicted class and of the label, (N,) float64.
    """

    paths: list[str]
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    confidence: NDArray[np.float64]
    label_probability: NDArray[np.float64]


def write_predictions(
    path: Path, outcome: Outcome, class_names: Sequence[str], image_name: Callable[[int], str]
) -> None:
    """Write a line for each test image, in their order.

    Args:
        path: the file.
        outcome: of N test images.
        class_names: length C.
        image_name: what identifies a test image, from its place.

    Raises:
        OSError: the file cannot be written.
    """
    columns = (outcome.labels, outcome.predicted, outcome.confidence, outcome.label_probability)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    lines = [line(_COLUMNS)]
    for i, (label, predicted, *probabilities) in enumerate(rows):
        cells = (image_name(i), class_names[label], class_names[predicted], *map(digits, probabilities))
        lines.append(line(cells))
    replace_file(path, lambda file: file.writelines(lines))


def read_predictions(path: Path, class_names: Sequence[str]) -> Predictions:
    """Read what `write_predictions` wrote for these classes.

    Raises:
        InputError: the file is not such a file; the message names the line.
        OSError: the file cannot be read.
    """
    index = {name: c for c, name in enumerate(class_names)}
    rows: list[tuple[str, int, int, float, float]] = []
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file)
        try:
            if (header := next(reader, [])) != list(_COLUMNS):
                raise ValueError(f"expected the columns {', '.join(_COLUMNS)}, got {', '.join(header) or 'none'}")
            for name, label, predicted, confidence, chance in reader:
                rows.append((name, index[label], index[predicted], float(confidence), float(chance)))
        except KeyError as error:
            raise InputError(f"{path}:{reader.line_num}: expected a class of the run, got {error}") from error
        except (ValueError, csv.Error) as error:
            raise InputError(f"{path}:{reader.line_num}: {error}") from error
    return Predictions(
        [row[0] for row in rows],
        np.array([row[1] for row in rows], np.int64),
        np.array([row[2] for row in rows], np.int64),
        np.array([row[3] for row in rows], np.float64),
        np.array([row[4] for row in rows], np.float64),
    )
