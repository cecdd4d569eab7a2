"""The rows of the joined batch and the classes of this process."""

import torch
from torch import Tensor

from ltfast.ops.core import checks
from ltfast.ops.core.collectives import class_ranges, rank, world_size
from ltfast.ops.core.tensors import accumulator, reduce


def own_classes(num_classes: int, number: int, name: str) -> range:
    """This process's classes.

    Raises:
        ValueError: ``name`` is for another number of classes.
    """
    classes = class_ranges(num_classes)[rank()]
    if number != len(classes):
        where = f"{classes.start} to {classes.stop - 1} of {num_classes}"
        raise ValueError(f"{name} is for {number} classes: expected {len(classes)}, this process's, {where}")
    return classes


def check_rows(joined: Tensor, target: Tensor, num_classes: int, name: str, ignore_index: int) -> None:
    """Refuse a joined batch that is not as many times this process's rows as there are processes, and bad labels."""
    processes = world_size()
    if joined.shape[0] % processes:
        expected = f"{processes} times as many as each process has"
        raise ValueError(f"{name} has {joined.shape[0]} rows: expected {expected}, those of the joined batch")
    own = joined[: joined.shape[0] // processes]
    checks.check_labels(target, own, classes=num_classes, ignore_index=ignore_index)


def joined_labels(targets: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Read on a CPU, in all processes alike: none is left waiting for another that found a label out of range."""
    if targets.device.type == "cpu" and not torch.compiler.is_compiling():
        checks.check_label_values(targets, num_classes, ignore_index=ignore_index)
    return targets


def close(
    rows: Tensor, target: Tensor, num_classes: int, dtype: torch.dtype, ignore_index: int, reduction: str
) -> Tensor:
    """NaN for a label out of range, which no process has."""
    target = target.long()
    rows = rows.masked_fill((target < 0) | (target >= num_classes), torch.nan)
    return reduce(rows.to(accumulator(dtype)), reduction, target != ignore_index)
