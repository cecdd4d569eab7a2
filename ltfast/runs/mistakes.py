"""The most confident mistakes of a run, as a contact sheet."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ltfast.data import ImageDataset, ImageDecodeError, ImageNotFoundError
from ltfast.engine.report import MISTAKES
from ltfast.evaluation.predictions import PREDICTIONS, read_predictions
from ltfast.evaluation.result_plots import MOST_MISTAKES, Mistake, plot_mistakes


def draw_mistakes(folder: Path, metrics: Mapping[str, Any], images: ImageDataset) -> None:
    """Write `mistakes.png` into a run's folder: the wrong predictions with the highest probability. A run without
    mistakes has none, and so does one of an older version, which has no `predictions.csv`.

    Args:
        folder: of the finished run.
        metrics: the content of its `metrics.json`.
        images: the test images.

    Raises:
        InputError: `predictions.csv` is damaged.
        OSError: a file cannot be read or written.
    """
    if "class_names" not in metrics or not (folder / PREDICTIONS).is_file():
        return
    names = metrics["class_names"]
    found = read_predictions(folder / PREDICTIONS, names)
    wrong = np.flatnonzero(found.labels != found.predicted)
    worst = wrong[np.argsort(-found.confidence[wrong], kind="stable")][:MOST_MISTAKES].tolist()
    mistakes = [
        Mistake(_image(images, i), names[found.labels[i]], names[found.predicted[i]], float(found.confidence[i]))
        for i in worst
        if i < len(images)
    ]
    plot_mistakes(folder / MISTAKES, mistakes)


def _image(images: ImageDataset, index: int) -> Image.Image | None:
    try:
        return images.image(index)
    except (ImageDecodeError, ImageNotFoundError):
        return None
