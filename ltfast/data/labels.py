"""Labels that come from outside: which classes they number."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltfast.errors import InputError


def check_labels(labels: NDArray[np.integer[Any]], limit: int, why: str, name: Callable[[int], str]) -> None:
    """Refuse labels that are negative or too large.

    Args:
        labels: (N,), any integer dtype, N at least 1.
        limit: the labels are below it.
        why: what sets the limit.
        name: what to call the label at a position; the message begins with it.

    Raises:
        InputError: there is such a label.
    """
    smallest, largest = int(labels.argmin()), int(labels.argmax())
    if labels[smallest] < 0:
        raise InputError(f"{name(smallest)}: expected a label of at least 0, got {labels[smallest]}")
    if labels[largest] >= limit:
        raise InputError(f"{name(largest)}: expected a label below {limit}, {why}, got {labels[largest]}")


def numbered_classes(labels: NDArray[np.integer[Any]], name: Callable[[int], str]) -> list[str]:
    """The classes of training labels that are numbers alone: "0", "1", ... to the largest.

    Each class needs an image, so a label that is not below the number of images is a mistake. It is refused before
    anything is made for each class.

    Args:
        labels: (N,), any integer dtype, N at least 1.
        name: what to call the label at a position.

    Raises:
        InputError: a label is negative, or not below N.
    """
    check_labels(labels, len(labels), "the number of training images, as each class needs one", name)
    return [str(label) for label in range(int(labels.max()) + 1)]
