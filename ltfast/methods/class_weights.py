"""The weights of the classes in a loss (`--class-weights`)."""

import csv
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ltfast.errors import InputError, SettingError

if TYPE_CHECKING:
    from torch import Tensor


def class_weights(weights: str | Sequence[float] | None, class_counts: Sequence[int]) -> "Tensor | None":
    """The weight of each class.

    Args:
        weights: "balanced", N / (C n_c) for N images in C classes of n_c images; "effective", the inverse of the
            effective number of images (Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR
            2019, with beta = 0.9999), which sum to C; or the weights themselves.
        class_counts: training images of each class, length C, over 0.

    Returns:
        (C,) float64; None for None.

    Raises:
        SettingError: there is not one weight for each class.
    """
    import torch

    from ltfast.ops.core.class_counts import inverse_effective_numbers

    if weights is None:
        return None
    counts = torch.tensor(class_counts, dtype=torch.float64)
    if weights == "balanced":
        return counts.sum() / (len(counts) * counts)
    if weights == "effective":
        inverse = inverse_effective_numbers(counts, 0.9999)
        return inverse / inverse.mean()
    if isinstance(weights, str) or len(weights) != len(counts):
        raise SettingError("class_weights", f"balanced, effective or {len(counts)} numbers, one per class", weights)
    return torch.tensor(weights, dtype=torch.float64)


def read_class_weights(path: Path, class_names: Sequence[str]) -> tuple[float, ...]:
    """Read the weights of the classes from a text file.

    Args:
        path: has one weight per line in the order of the classes, or `name,weight` in each line, in any order and also
            separated by tabs or semicolons; then the first line may be `class,weight`.
        class_names: the names of the classes, length C.

    Raises:
        InputError: there is no such file, or it does not have one weight over 0 for each class; the message names the
            line.
    """
    from ltfast.data.files import read_lines

    if not path.expanduser().exists():
        expected = "balanced, effective, none or a text file with a weight for each class"
        raise SettingError("class_weights", expected, str(path))
    lines = read_lines("class_weights", path.expanduser())
    delimiter = max(",\t;", key=lines[0].count) if lines else ","
    rows = [
        (f"{path}:{number}", [cell.strip() for cell in row])
        for number, row in enumerate(csv.reader(lines, delimiter=delimiter), 1)
    ]
    if all(len(row) == 1 for _, row in rows):
        if len(rows) != len(class_names):
            raise InputError(f"{path}: expected {len(class_names)} lines, one for each class, got {len(rows)}")
        return tuple(_weight(row[0], where) for where, row in rows)
    return _by_name(path, rows[1:] if rows[0][1] == ["class", "weight"] else rows, class_names)


def _by_name(path: Path, rows: Iterable[tuple[str, Sequence[str]]], class_names: Sequence[str]) -> tuple[float, ...]:
    known = set(class_names)
    found: dict[str, float] = {}
    for where, row in rows:
        if len(row) != 2:
            raise InputError(f"{where}: expected name,weight, got {len(row)} values")
        if row[0] not in known or row[0] in found:
            names = ", ".join(class_names[:5]) + (", ..." if len(class_names) > 5 else "")
            raise InputError(f"{where}: expected each class once ({names}), got {row[0]!r}")
        found[row[0]] = _weight(row[1], where)
    if missing := [name for name in class_names if name not in found]:
        raise InputError(f"{path}: expected a weight for each class, got none for {', '.join(missing[:5])}")
    return tuple(found[name] for name in class_names)


def _weight(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise InputError(f"{where}: expected a weight over 0, got {text!r}")
    return value
