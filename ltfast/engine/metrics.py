"""Top-1 accuracy and F1: overall, for groups of classes, and for each class."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor
from torchmetrics.classification import MulticlassStatScores

from ltfast.engine.stage import Predictor


def evaluate(
    predictor: Predictor,
    test: Iterable[Sequence[Tensor]],
    groups: Mapping[str, Sequence[int]],
    num_classes: int,
    accelerator: Accelerator,
    each: Callable[[Tensor, Tensor], None] | None = None,
) -> dict[str, Any]:
    """Top-1 accuracies and F1 of `predict` in percent, over the shares of all processes.

    Args:
        predictor: an unwrapped stage or a plan's predictor. It is put into evaluation mode.
        test: this process's batches of (view, ..., labels), shapes (B, channels, H, W) and (B,).
        groups: class indices of each group.
        num_classes: number of classes C.
        accelerator: the device, the precision, and the other processes.
        each: called with the class scores (B, C) and the labels (B,) of each batch.

    Returns:
        What `accuracies` returns.
    """
    # counts are summed over the processes, so uneven shares need no padding and no image is counted twice
    scores = MulticlassStatScores(num_classes, average=None, validate_args=False).to(accelerator.device)
    predictor.eval()
    with torch.no_grad(), accelerator.autocast():
        predictor.adapt(send_to_device(batch[:-1], accelerator.device, non_blocking=True) for batch in test)
        for batch in test:
            *views, labels = send_to_device(batch, accelerator.device, non_blocking=True)
            found = predictor.predict(*views)
            scores.update(found.argmax(1), labels)
            if each is not None:
                each(found, labels)
    counts = scores.compute().reshape(num_classes, 5)  # columns: tp, fp, tn, fn, support
    correct, wrong, total = (counts[:, column].tolist() for column in (0, 1, 4))
    return accuracies(correct, wrong, total, groups)


def accuracies(
    correct: Sequence[int], wrong: Sequence[int], total: Sequence[int], groups: Mapping[str, Sequence[int]]
) -> dict[str, Any]:
    """Top-1 accuracies in percent, from numbers of test images.

    Args:
        correct: images of each class that are predicted as this class, length C.
        wrong: images of other classes that are predicted as this class, length C.
        total: images of each class, length C.
        groups: class indices of each group.

    Returns:
        `top1` over all images; each group's mean over its classes, as the field reports it (Liu et al., CVPR 2019);
        `balanced_accuracy`, the mean over all classes with images; `macro_f1`, the mean of F1 over the classes that
        have images or are predicted; `per_class`, a list of length C. A value is None where there are no test images.
    """
    per_class = [100.0 * c / t if t else None for c, t in zip(correct, total, strict=True)]

    def mean(classes: Sequence[int]) -> float | None:
        known = [value for c in classes if (value := per_class[c]) is not None]
        return sum(known) / len(known) if known else None

    counts = zip(correct, wrong, total, strict=True)
    f1 = [200.0 * c / (c + w + t) for c, w, t in counts if w + t]  # precision is c / (c + w), recall c / t
    return {
        "top1": 100.0 * sum(correct) / sum(total) if sum(total) else None,
        **{name: mean(classes) for name, classes in groups.items()},
        "balanced_accuracy": mean(range(len(total))),
        "macro_f1": sum(f1) / len(f1) if f1 else None,
        "per_class": per_class,
    }
