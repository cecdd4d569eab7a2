"""Reading the counts that every loss for long-tailed data starts from."""

from collections.abc import Sequence

import torch
from torch import Tensor


def parse_class_counts(class_counts: Sequence[int] | Sequence[float] | Tensor, *, at_least: int = 1) -> Tensor:
    """The number of training images of each class as float64, shape (C,), on the CPU.

    Raises:
        ValueError: not one-dimensional, fewer than ``at_least`` classes, or a count that is not finite and over 0.
    """
    counts = class_counts.detach() if isinstance(class_counts, Tensor) else torch.tensor(class_counts, device="cpu")
    counts = counts.to("cpu", torch.float64)
    if counts.dim() != 1 or counts.numel() < at_least:
        raise ValueError(
            f"class_counts has shape {tuple(counts.shape)}: expected one count a class, at least {at_least}"
        )
    bad = ((counts <= 0) | ~counts.isfinite()).nonzero()
    if bad.numel():
        c = int(bad[0])
        raise ValueError(f"class_counts[{c}] is {counts[c].item():g}: expected a number over 0")
    return counts
