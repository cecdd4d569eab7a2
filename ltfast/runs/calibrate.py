"""Fits the calibration of a run to held-out images, and chooses thresholds on them.

Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_calibration_error

from ltfast.data import SeededViews
from ltfast.engine import Predictor, RunSettings
from ltfast.engine.report import write_json
from ltfast.errors import InputError
from ltfast.methods.loader import Loader
from ltfast.ops.core.warn import warn_caller
from ltfast.runs.calibration import Calibration, aggregate_of, digest_of, file_of
from ltfast.runs.classifier import refuse_adapting
from ltfast.runs.own_data import load_own
from ltfast.runs.restore import Trained, restore, restore_with_test_images

BINS = 15  # of the calibration error, as in the paper
_LIMITS = (0.01, 100.0)  # of the temperature

Target = Literal["precision", "recall"]
Images = Iterable[Sequence[Tensor]]


class HeldOut(NamedTuple):
    """A run, and the images that calibrate it.

    Attributes:
        trained: the run, without a calibration.
        batches: the images, in batches of (view, ..., labels).
        source: what the images are, in words.
        aggregate: the weighting of the sub-models that is used; None for a method without them.
    """

    trained: Trained
    batches: Images
    source: str
    aggregate: str | None


def validation_images(
    checkpoint: Path,
    *,
    run: RunSettings,
    batch_size: int = 256,
    root: str | Path | None = None,
    aggregate: str | None = None,
) -> HeldOut:
    """A run with its own validation images.

    Args:
        checkpoint: the checkpoint file, or the run's folder.
        run: settings of the execution; its workers load the images.
        batch_size: images per batch.
        root: folder of the images; None means that of the run.
        aggregate: see `ltfast.runs.restore.restore`.

    Raises:
        InputError: the run has no validation images.
        InputNotFoundError, CheckpointError, InputError: see `restore` and `load_own`.
    """
    trained = restore(checkpoint, run=run, aggregate=aggregate)
    digests = trained.facts.get("digests")  # older checkpoints have none
    missing = InputError(
        f"the run {checkpoint} has no validation images; train with --validation 0.1, or name other images with --data"
    )
    if digests is not None and "validation labels" not in digests:
        raise missing
    images = load_own(checkpoint, trained, "validation", root=root).validation
    if images is None:
        raise missing
    views = SeededViews(images, trained.transforms, seed=0)
    keys = [(index, index) for index in range(len(images))]
    batches = Loader(views, batch_size, sampler=keys, num_workers=run.workers)
    source = f"validation images of {trained.facts['source']}"
    return HeldOut(trained, batches, source, aggregate_of(trained, aggregate))


def other_images(checkpoint: Path, *, source: str, aggregate: str | None = None, **options: Any) -> HeldOut:
    """A run with the test images of another source, which should not be those of a later evaluation.

    Args:
        checkpoint, source, aggregate, options: see `ltfast.runs.restore.restore_with_test_images`.
    """
    tested = restore_with_test_images(checkpoint, source=source, aggregate=aggregate, **options)
    return HeldOut(tested, tested.plan.test, f"test images of {source}", aggregate_of(tested, aggregate))


def calibrate(
    checkpoint: Path,
    images: HeldOut,
    *,
    method: Literal["temperature", "vector"] = "temperature",
    accuracy: float = 0.95,
    target: tuple[Target, float] | None = None,
    device: torch.device | str = "cpu",
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> dict[str, Any]:
    """Calibrate a run on held-out images, and write `calibration.json` into its folder.

    Args:
        checkpoint: the checkpoint file, or the run's folder.
        images: the run and the images.
        method: what is fitted by maximum likelihood: "temperature", one number by which the scores are divided; or
            "vector", a scale and a bias of each class.
        accuracy: the top-1 accuracy that the images reach whose best probability is above the threshold to abstain.
        target: the precision or the recall that each class reaches above its threshold; None chooses no thresholds.
        device: the device for the network.
        autocast: makes the context of each call of the network, for its precision.

    Returns:
        The content of the file:

        - `method`, and its parameters: `temperature`; or `scale` and `bias`, lists of length C, and `distribution`, the
          mean of the calibrated probabilities, which is the class distribution that the calibrated scores follow;
        - `class_names`, `images` (their number), `images_per_class`, `source`;
        - `before` and `after`: `negative_log_likelihood`; `expected_calibration_error` of the best class in 15 bins of
          equal width, from 0 to 1; `brier_score`, the sum over the classes, from 0 to 2; and `accuracy`, from 0 to 1;
        - `abstain`: the wanted `accuracy`; the least `threshold` that reaches it, and the `coverage`, the share of
          images above it; both None if no threshold does;
        - `thresholds`: `target`, `value` and `classes`, a record for each class; None without a target. See
          `class_thresholds`.
        - `checkpoint` and `aggregate`, to which the calibration belongs.

    Raises:
        InputError: the class scores are not finite, or the run is of method `do` with `aggregate="group"`.
        OSError: the file cannot be written.
    """
    trained = images.trained
    names = list(trained.facts["class_names"])
    refuse_adapting(trained)
    scores, labels = scores_of(trained.predictor.to(device).eval(), images.batches, autocast)
    content: dict[str, Any] = {"method": method}
    if method == "temperature":
        content["temperature"] = fit_temperature(scores, labels)
    else:
        scale, bias = fit_vector(scores, labels)
        content |= {"scale": scale.tolist(), "bias": bias.tolist()}
    # as in `predict`: the parameters and the scores are float32
    fitted = Calibration(content, "").applied(_Given())
    after = fitted.predict(scores.float()).double()
    if method == "vector":
        content["distribution"] = after.softmax(1).mean(0).tolist()
    probabilities = after.softmax(1).numpy()
    content |= {
        "class_names": names,
        "images": len(labels),
        "images_per_class": torch.bincount(labels, minlength=len(names)).tolist(),
        "source": images.source,
        "before": measures(scores, labels),
        "after": measures(after, labels),
        "abstain": abstain_threshold(probabilities, labels.numpy(), accuracy),
        "thresholds": None,
        "checkpoint": digest_of(checkpoint),
        "aggregate": images.aggregate,
    }
    if target is not None:
        classes = class_thresholds(probabilities, labels.numpy(), names, *target)
        content["thresholds"] = {"target": target[0], "value": target[1], "classes": classes}
    write_json(file_of(checkpoint), content)
    return content


class _Given(Predictor):
    """Predicts the scores that it is given."""

    def predict(self, *views: Tensor) -> Tensor:
        return views[0]


@torch.no_grad()
def scores_of(
    predictor: Predictor, batches: Images, autocast: Callable[[], AbstractContextManager[None]]
) -> tuple[Tensor, Tensor]:
    """The class scores (N, C) float64, whose softmax are the probabilities, and the labels (N,) int64."""
    device = next(predictor.parameters()).device
    scores, labels = [], []
    for *views, label in batches:
        with autocast():
            found = predictor.predict(*(view.to(device) for view in views[: predictor.views]))
        scores.append(predictor.score_scale * found.cpu().double())
        labels.append(label)
    result = torch.cat(scores)
    if not result.isfinite().all():
        raise InputError("the class scores of the run are not finite; it cannot be calibrated")
    return result, torch.cat(labels)


def fit_temperature(scores: Tensor, labels: Tensor) -> float:
    """The temperature T with the least negative log-likelihood of `softmax(scores / T)`.

    If every image is classified correctly, the likelihood grows as T falls to 0. T is then 1, with a warning.

    Args:
        scores: (N, C) float64.
        labels: (N,) int64.
    """
    if bool((scores.argmax(1) == labels).all()):
        warn_caller(
            f"all {len(labels)} held-out images are classified correctly, so that no temperature is the best; it "
            "stays 1, and more held-out images are needed"
        )
        return 1.0

    def loss(log_temperature: float) -> float:
        return float(F.cross_entropy(scores / np.exp(log_temperature), labels))

    # the loss is convex in 1 / T, and so has one minimum
    found = minimize_scalar(loss, bounds=np.log(_LIMITS), method="bounded", options={"xatol": 1e-10})
    return float(np.exp(found.x))


def fit_vector(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The scale and the bias of each class with the largest posterior probability of `softmax(scale * scores + bias)`.

    The prior is normal around temperature scaling with a standard deviation of 1: of `T * scale` around 1, and of the
    bias around 0. It keeps the bias of a class without images finite.

    Args:
        scores: (N, C) float64.
        labels: (N,) int64.

    Returns:
        The scale and the bias, both (C,) float64.
    """
    classes = scores.shape[1]
    temperature = fit_temperature(scores, labels)

    def loss(values: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        scale, bias = (torch.from_numpy(part.copy()).requires_grad_() for part in np.split(values, 2))
        likelihood = F.cross_entropy(scale * scores + bias, labels, reduction="sum")
        result = (likelihood + ((temperature * scale - 1) ** 2 + bias**2).sum() / 2) / len(labels)
        gradients = torch.autograd.grad(result, (scale, bias))
        return result.item(), torch.cat(gradients).numpy()

    start = np.concatenate([np.full(classes, 1 / temperature), np.zeros(classes)])
    options = {"maxiter": 2000, "maxfun": 4000, "ftol": 1e-13, "gtol": 1e-9}
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options=options)
    scale, bias = (torch.from_numpy(part.copy()) for part in np.split(found.x, 2))
    return scale, bias


def measures(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """How well the softmax of scores is calibrated; see `calibrate`.

    Args:
        scores: (N, C) float64.
        labels: (N,) int64.
    """
    probabilities, classes = scores.softmax(1), scores.shape[1]
    brier = (probabilities - F.one_hot(labels, classes)).square().sum(1).mean()
    error = multiclass_calibration_error(probabilities, labels, num_classes=classes, n_bins=BINS, norm="l1")
    return {
        "negative_log_likelihood": F.cross_entropy(scores, labels).item(),
        "expected_calibration_error": error.item(),
        "brier_score": brier.item(),
        "accuracy": (scores.argmax(1) == labels).double().mean().item(),
    }


def abstain_threshold(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64], accuracy: float
) -> dict[str, float | str | None]:
    """The least threshold on the best probability above which the top-1 accuracy is at least `accuracy`.

    Args:
        probabilities: (N, C).
        labels: (N,).
        accuracy: from 0 to 1.

    Returns:
        `accuracy`; `threshold` and `coverage`, the share of images above it; and `reason`, None or why there is no
        threshold.
    """
    best = probabilities.max(1)
    threshold = _least_threshold(best, probabilities.argmax(1) == labels, accuracy)
    if threshold is None:
        reason = f"no threshold reaches an accuracy of {accuracy:g} on these images"
        return {"accuracy": accuracy, "threshold": None, "coverage": None, "reason": reason}
    return {
        "accuracy": accuracy,
        "threshold": threshold,
        "coverage": float((best >= threshold).mean()),
        "reason": None,
    }


def class_thresholds(
    probabilities: NDArray[np.float64],
    labels: NDArray[np.int64],
    names: Sequence[str],
    target: Target,
    value: float,
) -> list[dict[str, Any]]:
    """A threshold for each class on its probability, for images whose best class it is.

    Args:
        probabilities: (N, C).
        labels: (N,).
        names: the names of the classes, length C.
        target: "precision" chooses the least threshold that reaches the value, and "recall" the largest. Both count
            an image as one of the class if the class is its best, and its probability reaches the threshold.
        value: the precision or the recall, from 0 to 1.

    Returns:
        For each class: `class`, its name; `threshold`; `images` that are above it; their `precision` and `recall`; and
        `reason`. Where no threshold reaches the value, only the class and the reason are not None.
    """
    predicted = probabilities.argmax(1)
    result: list[dict[str, Any]] = []
    for number, name in enumerate(names):
        own = predicted == number
        values, hits, total = probabilities[own, number], labels[own] == number, int((labels == number).sum())
        threshold: float | None = None
        reason: str | None = f"no threshold reaches a {target} of {value:g} on these images"
        if not total:
            reason = "none of these images is of this class"
        elif not len(values):
            reason = "none of these images is predicted as this class"
        elif target == "precision":
            threshold = _least_threshold(values, hits, value)
        else:
            threshold = _largest_threshold(values, hits, total, value)
        row: dict[str, Any] = {"class": name, "threshold": threshold, "images": None, "precision": None, "recall": None}
        if threshold is not None:
            kept = hits[values >= threshold]
            reason = None
            row |= {
                "images": len(kept),
                "precision": float(kept.mean()) if len(kept) else None,
                "recall": float(kept.sum() / total),
            }
        result.append({**row, "reason": reason})
    return result


def _least_threshold(values: NDArray[np.float64], hits: NDArray[np.bool_], share: float) -> float | None:
    """The least threshold such that at least this share of the values above it are hits; None if there is none."""
    order = np.argsort(-values, kind="stable")
    ordered = values[order]
    shares = np.cumsum(hits[order]) / np.arange(1, len(values) + 1)
    ends = np.append(ordered[1:] < ordered[:-1], True)  # equal values are above a threshold together
    (reached,) = np.nonzero(ends & (shares >= share))
    return _below(ordered, reached[-1]) if len(reached) else None


def _largest_threshold(values: NDArray[np.float64], hits: NDArray[np.bool_], total: int, share: float) -> float | None:
    """The largest threshold such that the hits above it are at least this share of `total`; None if there is none."""
    order = np.argsort(-values, kind="stable")
    (reached,) = np.nonzero(np.cumsum(hits[order]) / total >= share)
    if not len(reached):
        return None
    ordered = values[order]
    last = int(np.flatnonzero(ordered == ordered[reached[0]])[-1])
    return _below(ordered, last)


def _below(ordered: NDArray[np.float64], last: int) -> float:
    """A threshold that the falling values up to `last` reach, and no others: halfway to the next one, so that rounding
    does not matter. It is 0 if all values reach it."""
    return 0.0 if last + 1 == len(ordered) else float((ordered[last] + ordered[last + 1]) / 2)


def summary(content: Mapping[str, Any]) -> list[str]:
    """What a calibration has changed, in lines for a person."""
    before, after = content["before"], content["after"]
    words = {
        "negative_log_likelihood": "negative log-likelihood",
        "expected_calibration_error": "expected calibration error",
        "brier_score": "Brier score",
        "accuracy": "accuracy",
    }
    changes = ", ".join(f"{word} {before[name]:.4f} -> {after[name]:.4f}" for name, word in words.items())
    what = f"temperature {content['temperature']:.4g}" if "temperature" in content else "a scale and a bias per class"
    lines = [f"{what}, from {content['images']} {content['source']}: {changes}"]
    abstain = content["abstain"]
    if abstain["threshold"] is None:
        lines.append(f"--abstain calibrated: {abstain['reason']}")
    else:
        lines.append(
            f"--abstain calibrated: {100 * abstain['coverage']:.1f} % of the images have a probability of at least "
            f"{abstain['threshold']:.4f}, with a top-1 accuracy of at least {abstain['accuracy']:g}"
        )
    if content["thresholds"] is not None:
        found = content["thresholds"]
        missing = [row["class"] for row in found["classes"] if row["threshold"] is None]
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        lines.append(
            f"--thresholds: {found['target']} {found['value']:g} for {len(found['classes']) - len(missing)} of "
            f"{len(found['classes'])} classes{f'; no threshold for {shown}' if missing else ''}"
        )
    return lines
