"""The calibration of a run: a file beside the checkpoint, and how it changes the class scores.

Guo et al., "On Calibration of Modern Neural Networks", ICML 2017. `ltfast.runs.calibrate` makes the file.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ltfast.engine import Predictor
from ltfast.engine.checkpoint import CHECKPOINT
from ltfast.engine.schema import integer, list_of, number, one_of, optional, read_json, record, text
from ltfast.errors import InputError
from ltfast.runs.restore import Trained

FILE = "calibration.json"
METHODS = ("temperature", "vector")

_PROBABILITY = number(0, 1)
_COMMON = {
    "method": one_of(METHODS),
    "class_names": list_of(text),
    "images": integer(1),
    "checkpoint": text,
    "aggregate": optional(text),
    "abstain": record({"accuracy": _PROBABILITY, "threshold": optional(_PROBABILITY)}),
    "thresholds": optional(
        record(
            {
                "target": one_of(("precision", "recall")),
                "classes": list_of(record({"threshold": optional(_PROBABILITY)})),
            }
        )
    ),
}
_OWN = {
    "temperature": {"temperature": number(above=0)},
    "vector": {
        "scale": list_of(number()),
        "bias": list_of(number()),
        "distribution": list_of(number(above=0)),
    },
}

T = TypeVar("T", bound=Trained)


class Calibrated(Predictor):
    """A predictor whose class scores are calibrated: `scale * scores + bias`, float32.

    Args:
        predictor: gives class scores (B, C); its `score_scale` becomes a part of the scores.
        scale, bias: float32, () or (C,).
    """

    scale: Tensor
    bias: Tensor

    def __init__(self, predictor: Predictor, scale: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.predictor = predictor
        self.views, self.adapts = predictor.views, predictor.adapts
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)

    def adapt(self, views: Iterable[Sequence[Tensor]]) -> None:
        self.predictor.adapt(views)

    def predict(self, *views: Tensor) -> Tensor:
        return self.predictor.score_scale * self.predictor.predict(*views).float() * self.scale + self.bias


@dataclass(frozen=True)
class Calibration:
    """The content of a calibration file.

    Attributes:
        content: the file, as a mapping; see `ltfast.runs.calibrate.calibrate`.
        digest: identifies the content.
    """

    content: Mapping[str, Any]
    digest: str

    def __str__(self) -> str:
        what = f"{self.content['method']} scaling"
        if self.content["method"] == "temperature":
            what += f", temperature {self.content['temperature']:.4g}"
        return f"{what}, from {self.content['images']} images"

    def applied(self, predictor: Predictor) -> Calibrated:
        """A predictor with calibrated scores."""
        content = self.content
        if content["method"] == "temperature":
            return Calibrated(predictor, torch.tensor(1 / content["temperature"]), torch.tensor(0.0))
        return Calibrated(predictor, torch.tensor(content["scale"]), torch.tensor(content["bias"]))

    @property
    def distribution(self) -> Tensor | None:
        """The class distribution that the calibrated scores follow, (C,) float64; None for that of the run."""
        known = self.content.get("distribution")
        return None if known is None else torch.tensor(known, dtype=torch.float64)

    @property
    def abstain(self) -> float:
        """The least probability of the best class with which an image gets a class; infinite if none is high enough."""
        threshold = self.content["abstain"]["threshold"]
        return math.inf if threshold is None else threshold

    @property
    def thresholds(self) -> list[float] | None:
        """The least probability of each class with which an image gets it, length C; None without thresholds.

        A class that does not reach the precision at any threshold is never given (infinity). One that does not reach
        the recall is always given (0).
        """
        found = self.content["thresholds"]
        if found is None:
            return None
        unreached = math.inf if found["target"] == "precision" else 0.0
        return [unreached if one["threshold"] is None else one["threshold"] for one in found["classes"]]


def calibrated(trained: T, checkpoint: Path, aggregate: str | None = None) -> tuple[T, Calibration | None]:
    """A run with calibrated scores, if its folder has a calibration; otherwise the run itself, and None.

    Args:
        trained: the run.
        checkpoint: its checkpoint file, or its folder.
        aggregate: see `ltfast.runs.restore.restore`.

    Raises:
        InputError: the file is damaged, or is the calibration of something else.
    """
    path = file_of(checkpoint)
    if not path.is_file():
        return trained, None
    found = _read(path)
    content = found.content
    remedy = f"repeat `ltfast calibrate --checkpoint {checkpoint}`, or use --no-calibration"
    known, names = content["class_names"], trained.facts["class_names"]
    # numbered classes may have been given names
    if len(known) != len(names) or (known != names and trained.facts.get("named", True)):
        raise InputError(f"{path} is a calibration of other classes than those of the run; {remedy}")
    if content["checkpoint"] != digest_of(checkpoint):
        raise InputError(f"{path} is a calibration of another state of the run; {remedy}")
    used = aggregate_of(trained, aggregate)
    if content["aggregate"] != used:
        raise InputError(
            f"{path} is a calibration for --aggregate {content['aggregate']}, and {used} is used; add --aggregate "
            f"{used} to `ltfast calibrate --checkpoint {checkpoint}`, or use --no-calibration"
        )
    distribution = trained.distribution if found.distribution is None else found.distribution
    return replace(trained, predictor=found.applied(trained.predictor), distribution=distribution), found


def aggregate_of(trained: Trained, aggregate: str | None) -> str | None:
    """The weighting of the sub-models that is used; None for a method without them."""
    used: str | None = trained.settings.get("aggregate") if aggregate is None else aggregate
    return used


def file_of(checkpoint: Path) -> Path:
    """The calibration file of a run, from its folder or its checkpoint file."""
    return (checkpoint if checkpoint.is_dir() else checkpoint.parent) / FILE


def digest_of(checkpoint: Path) -> str:
    """The SHA-256 of a checkpoint, which identifies it wherever its folder is."""
    result = sha256()
    with open(checkpoint / CHECKPOINT if checkpoint.is_dir() else checkpoint, "rb") as file:
        while block := file.read(2**20):
            result.update(block)
    return result.hexdigest()


def _read(path: Path) -> Calibration:
    try:
        content = read_json(path)
        record(_COMMON)(content, "")
        count = len(content["class_names"])
        record(_OWN[content["method"]])(content, "")
        for name in ("scale", "bias", "distribution"):
            if name in content:
                list_of(number(), count)(content[name], name)
        if content["thresholds"] is not None:
            list_of(record({}), count)(content["thresholds"]["classes"], "thresholds.classes")
    except ValueError as error:
        raise InputError(
            f"{path} is no calibration, or is damaged: {error}; delete it, or use --no-calibration"
        ) from error
    return Calibration(content, sha256(path.read_bytes()).hexdigest())
