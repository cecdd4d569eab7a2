"""Checks labels from the user's files, and derives the classes from them."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltfast.errors import InputError

_SHOWN = 5  # maximum number of class names in a message
_MOST_CLASSES = 2**20


def check_labels(labels: NDArray[np.integer[Any]], limit: int, why: str, name: Callable[[int], str]) -> None:
    """Check that labels are in [0, limit).

    Args:
        labels: (N,), any integer dtype, N at least 1.
        limit: the exclusive upper limit.
        why: the reason for the limit, for the message.
        name: maps the position of a label to its name; the message begins with it.

    Raises:
        InputError: a label is out of range.
    """
    smallest, largest = int(labels.argmin()), int(labels.argmax())
    if labels[smallest] < 0:
        raise InputError(f"{name(smallest)}: expected a label of at least 0, got {labels[smallest]}")
    if labels[largest] >= limit:
        raise InputError(f"{name(largest)}: expected a label below {limit}, {why}, got {labels[largest]}")


def numbered_classes(labels: NDArray[np.integer[Any]], name: Callable[[int], str]) -> list[str]:
    """The names of classes that are only numbered in the training labels: "0", "1", ... up to the largest label.

    Each class needs an image, so labels of N or more are invalid. They raise an error before anything is allocated per
    class.

    Args:
        labels: (N,), any integer dtype, N at least 1.
        name: maps the position of a label to its name, for the message.

    Raises:
        InputError: a label is negative, or not below N.
    """
    check_labels(labels, len(labels), "the number of training images, since each class needs one", name)
    return [str(label) for label in range(int(labels.max()) + 1)]


def named_labels(
    labels: Sequence[str], class_names: Sequence[str], expected: str, name: Callable[[int], str]
) -> NDArray[np.int64]:
    """The positions of labels, which are words, among the class names.

    Args:
        labels: length N.
        class_names: the class names, without repetition, length C.
        expected: a description of the class names, for the message.
        name: maps the position of a label to its name; the message begins with it.

    Returns:
        (N,) int64, in [0, C).

    Raises:
        InputError: a label is no class name.
    """
    numbers = {class_name: number for number, class_name in enumerate(class_names)}
    for position, label in enumerate(labels):
        if label not in numbers:
            known = ", ".join(map(repr, class_names[:_SHOWN])) + (", ..." if len(class_names) > _SHOWN else "")
            raise InputError(f"{name(position)}: expected {expected} ({known}), got {label!r}")
    return np.array([numbers[label] for label in labels], np.int64)


def present_classes(labels: NDArray[np.integer[Any]], name: Callable[[int], str]) -> list[str]:
    """The names of numbered classes if only the test labels are known: "0", "1", ... up to the largest one.

    For the arguments see `numbered_classes`. Classes without images are allowed, up to 2**20 classes.

    Raises:
        InputError: a label is negative or too large.
    """
    check_labels(labels, _MOST_CLASSES, "the largest number of classes", name)
    return [str(label) for label in range(int(labels.max()) + 1)]
