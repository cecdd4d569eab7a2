"""What a run reports about its test images besides `ltfast.engine.metrics`: figures, intervals, a record a class."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ltfast.evaluation.figures import overall
from ltfast.evaluation.intervals import intervals
from ltfast.evaluation.outcome import Outcome


def measures(
    outcome: Outcome, class_names: Sequence[str], class_counts: Sequence[int], groups: Mapping[str, Sequence[int]]
) -> dict[str, Any]:
    """What `metrics.json` and `eval.json` hold about N test images, as plain values.

    Args:
        outcome: of the test images.
        class_names, class_counts: the name and the number of training images of each class, length C.
        groups: class indices of each group.

    Returns:
        What `overall` returns; `intervals`; `class_names`; `classes`, see `class_records`.
    """
    return {
        **overall(outcome),
        "intervals": intervals(outcome, groups),
        "class_names": list(class_names),
        "classes": class_records(outcome, class_names, class_counts, groups),
    }


def class_records(
    outcome: Outcome, class_names: Sequence[str], class_counts: Sequence[int], groups: Mapping[str, Sequence[int]]
) -> list[dict[str, Any]]:
    """A record for each class; for the arguments see `measures`.

    Returns:
        Length C: `name`; `group`; `training_images`; `test_images`; `precision`, `recall` and `f1` in percent, None for
        a class that is never predicted, one without test images, and one with both of these; `confused_with`, the wrong
        class that is predicted most often for its test images, the first of equal ones, or None; `confusions`, for how
        many of them.
    """
    classes = len(class_names)

    def counts(labels: Tensor) -> list[int]:
        result: list[int] = torch.bincount(labels, minlength=classes).tolist()
        return result

    found, predicted, test = counts(outcome.labels[outcome.hits]), counts(outcome.predicted), counts(outcome.labels)
    group_of = {c: name for name, members in groups.items() for c in members}
    confused = _confused(outcome)

    def percent(part: int, whole: int) -> float | None:
        return 100 * part / whole if whole else None

    return [
        {
            "name": class_names[c],
            "group": group_of.get(c),
            "training_images": class_counts[c],
            "test_images": test[c],
            "precision": percent(found[c], predicted[c]),
            "recall": percent(found[c], test[c]),
            "f1": percent(2 * found[c], predicted[c] + test[c]),
            "confused_with": class_names[confused[c][0]] if c in confused else None,
            "confusions": confused[c][1] if c in confused else 0,
        }
        for c in range(classes)
    ]


def _confused(outcome: Outcome) -> dict[int, tuple[int, int]]:
    """For each class with mistakes: the wrong class that is predicted most often, and how often."""
    classes = outcome.scores.shape[1]
    wrong = ~outcome.hits
    codes = outcome.labels[wrong] * classes + outcome.predicted[wrong]
    result: dict[int, tuple[int, int]] = {}
    for code, times in zip(*(found.tolist() for found in codes.unique(return_counts=True)), strict=True):
        label, other = divmod(code, classes)
        if times > result.get(label, (0, 0))[1]:
            result[label] = (other, times)
    return result
