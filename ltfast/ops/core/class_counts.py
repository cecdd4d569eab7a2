"""Parses class counts, which all methods for long-tailed data start from."""

from collections.abc import Iterable, Mapping, Set
from numbers import Integral, Real
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Subset

ClassCounts: TypeAlias = (
    Mapping[int, int] | Iterable[int] | Iterable[float] | NDArray[np.number] | Tensor | Dataset[Any]
)


def parse_class_counts(class_counts: ClassCounts, *, at_least: int = 1, name: str = "class_counts") -> Tensor:
    """The number of training images of each class as float64, shape (C,), on the CPU.

    Args:
        class_counts: see ``read_class_counts``.
        at_least: the fewest classes.
        name: what messages call it.

    Raises:
        TypeError, ValueError: as ``read_class_counts``; fewer than ``at_least`` classes, or a count that is not finite
            and over 0.
    """
    counts = read_class_counts(class_counts, name=name)
    if counts.numel() < at_least:
        raise ValueError(f"{name} has shape {tuple(counts.shape)}: expected one count a class, at least {at_least}")
    bad = ((counts <= 0) | ~counts.isfinite()).nonzero()
    if bad.numel():
        c = int(bad[0])
        raise ValueError(f"{name}[{c}] is {counts[c].item():g}: expected a number over 0")
    return counts


def read_class_counts(class_counts: ClassCounts, *, name: str = "class_counts") -> Tensor:
    """The counts as float64, shape (C,), on the CPU; their values are not checked.

    Args:
        class_counts: (C,), a list, tuple or other iterable of numbers in the order of the labels, a NumPy array or a
            tensor; or a mapping from each of the labels 0 to C - 1 to its count (``dict``, ``collections.Counter``);
            or a data set whose attribute ``targets`` holds the label of each image, as those of torchvision, or a
            ``torch.utils.data.Subset`` of one. Each class must have an image. The classes are those of the data set's
            attribute ``classes``, if it has one, otherwise 0 to the largest label.
        name: what messages call it.

    Raises:
        TypeError: not numbers, or labels that are no integers.
        ValueError: not one-dimensional, or a label without a count.
    """
    expected = "expected numbers, one count a class"
    if isinstance(class_counts, Dataset) or hasattr(class_counts, "targets"):
        return _counts_of_labels(class_counts, name)
    if isinstance(class_counts, Mapping):
        class_counts = [class_counts[c] for c in _labels(class_counts, name)]
    if isinstance(class_counts, np.ndarray):
        if class_counts.dtype.kind not in "iuf":
            raise TypeError(f"{name} has dtype {class_counts.dtype}: {expected}")
        counts = torch.from_numpy(class_counts.astype(np.float64))
    elif isinstance(class_counts, Tensor):
        if class_counts.dtype == torch.bool or class_counts.is_complex():
            raise TypeError(f"{name} has dtype {class_counts.dtype}: {expected}")
        counts = class_counts.detach().to("cpu", torch.float64)
    elif isinstance(class_counts, (str, bytes, Set)) or not isinstance(class_counts, Iterable):
        kind = type(class_counts).__name__
        expected = "a list, a mapping, a NumPy array, a tensor, or a data set with `targets`"
        raise TypeError(f"{name} is of type {kind}: expected {expected}")
    else:
        values = list(class_counts)
        for c, value in enumerate(values):
            if isinstance(value, (bool, np.bool_, str, bytes)) or not isinstance(value, (Real, Iterable)):
                raise TypeError(f"{name}[{c}] is {value!r}: {expected}")
        try:
            counts = torch.tensor(values, dtype=torch.float64, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"{name} is nested: {expected}") from error
    if counts.dim() != 1:
        raise ValueError(f"{name} has shape {tuple(counts.shape)}: expected (C,), one count a class")
    return counts


def inverse_effective_numbers(counts: Tensor, beta: float) -> Tensor:
    """``(1 - beta) / (1 - beta^n)``, the weight of an image of a class with n images, shape and dtype of the counts.

    Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019, equation 2. It is infinite for
    n = 0.

    Args:
        counts: (C,), floating-point, at least 0.
        beta: in [0, 1); not checked.
    """
    return (1 - beta) / (1 - beta**counts)


def _labels(class_counts: Mapping[int, int], name: str) -> range:
    """The counts of a mapping, which must have exactly these classes as keys."""
    for label in class_counts:
        if isinstance(label, bool) or not isinstance(label, Integral):
            raise TypeError(f"{name} has the label {label!r}: expected the integers 0 to C - 1")
    labels = range(len(class_counts))
    for c in labels:
        if c not in class_counts:
            other = next(label for label in class_counts if label not in labels)
            raise ValueError(
                f"{name} has {len(labels)} labels, {other} among them, and no count of label {c}: expected the labels "
                f"0 to C - 1, each with a count"
            )
    return labels


def _counts_of_labels(images: Any, name: str) -> Tensor:
    """The number of images of each class of a data set, none of which is 0."""
    labels, classes = _labels_of(images, name)
    counts = torch.bincount(labels, minlength=classes)
    missing = (counts == 0).nonzero()
    if len(missing):
        raise ValueError(
            f"{name} is a data set without an image of class {int(missing[0])}: expected an image of each of the "
            f"{classes} classes. {_INSTEAD.format(name)}"
        )
    return counts.double()


def _labels_of(images: Any, name: str) -> tuple[Tensor, int]:
    """The labels of the images of a data set, and the number of its classes."""
    if isinstance(images, Subset):
        labels, classes = _labels_of(images.dataset, name)
        return labels[torch.as_tensor(images.indices, dtype=torch.int64)], classes
    targets = getattr(images, "targets", None)
    if targets is None:
        raise TypeError(
            f"{name} is a data set of type {type(images).__name__} without the attribute `targets`: expected one that "
            f"has the label of each image there. {_INSTEAD.format(name)}"
        )
    try:
        labels = torch.as_tensor(targets, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"the targets of {name} are no numbers: expected one integer label an image") from error
    if labels.dim() != 1 or not len(labels):
        shape = tuple(labels.shape)
        raise ValueError(
            f"the targets of {name} have shape {shape}: expected one label an image. {_INSTEAD.format(name)}"
        )
    if labels.dtype == torch.bool or labels.dtype.is_floating_point or labels.dtype.is_complex:
        raise TypeError(f"the targets of {name} have dtype {labels.dtype}: expected integer labels")
    labels = labels.long()
    low, high = int(labels.min()), int(labels.max())
    names = getattr(images, "classes", None)
    classes = high + 1 if names is None else len(names)
    if low < 0 or high >= classes:
        wrong = low if low < 0 else high
        expected = "labels of 0 or more" if names is None else f"labels in [0, {classes}), one of its `classes`"
        raise ValueError(f"the targets of {name} have the label {wrong}: expected {expected}. {_INSTEAD.format(name)}")
    return labels, classes


_INSTEAD = "Or pass the number of images of each class: {}=torch.bincount(labels, minlength=C).clamp(min=1)"
