"""Corrects class scores for another class distribution: logit adjustment at test time.

Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, section 4.1.
"""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ltfast.data.files import open_text
from ltfast.errors import InputError
from ltfast.runs.image_paths import delimiter_of
from ltfast.runs.restore import Trained


def prior_shift(trained: Trained, prior: str) -> Tensor:
    r"""What to add to the class scores of a run, (C,) float32: `log(wanted) - log(followed)`.

    `followed` is the class distribution that the scores follow, which depends on the run's loss and sampler; see
    `BackboneSettings.score_distribution`. `wanted` is that of the images to predict.

    Args:
        trained: the run.
        prior: "train", the training images of each class; "uniform"; or a CSV file with the columns `class` and
            `weight`, a row for each class of the run. Weights are at least 0, and are divided by their sum.

    Raises:
        InputNotFoundError: there is no such file.
        InputError: the scores of the run follow no known distribution, or the file is invalid.
    """
    followed = trained.distribution
    if followed is None:
        settings = trained.settings
        loss = f" with loss {settings['loss']}" if "loss" in settings else ""
        raise InputError(
            f"expected none for a run of method {settings['method']}{loss}: its class scores do not follow a known "
            "class distribution, which could be replaced",
            name="prior",
        )
    counts, names = trained.facts["class_counts"], trained.facts["class_names"]
    if prior == "train":
        wanted = torch.tensor(counts, dtype=torch.float64)
    elif prior == "uniform":
        wanted = torch.ones(len(names), dtype=torch.float64)
    else:
        wanted = _read(Path(prior).expanduser(), names)
    return ((wanted / wanted.sum()).log() - (followed / followed.sum()).log()).float()


def _read(path: Path, names: Sequence[str]) -> Tensor:
    if not path.exists():
        raise InputError(
            f"expected train, uniform or a CSV file with the columns class and weight, got {str(path)!r}", name="prior"
        )
    weights: dict[str, float] = {}
    with open_text("prior", path, newline="") as file:
        header = file.readline()
        columns = next(csv.reader([header], delimiter=delimiter_of(header)), [])
        if not {"class", "weight"} <= set(columns):
            raise InputError(f"{path}:1: expected the columns class and weight, got {', '.join(columns) or 'none'}")
        for number, row in enumerate(csv.DictReader(file, columns, delimiter=delimiter_of(header)), 2):
            name, text = row["class"], row["weight"]
            if name not in names or name in weights:
                known = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
                raise InputError(f"{path}:{number}: expected each class of the run once ({known}), got {name!r}")
            weights[name] = _weight(text, f"{path}:{number}")
    missing = [name for name in names if name not in weights]
    if missing:
        raise InputError(f"{path}: expected a row for each class of the run, got none for {', '.join(missing[:5])}")
    result = torch.tensor([weights[name] for name in names], dtype=torch.float64)
    if not 0 < float(result.sum()) < math.inf:
        raise InputError(f"{path}: expected weights with a positive sum, got {float(result.sum())}")
    return result


def _weight(text: str | None, where: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise InputError(f"{where}: expected a weight of at least 0, got {text!r}")
    return value
