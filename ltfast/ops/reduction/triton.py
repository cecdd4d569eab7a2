"""The device functions that a row's kernel calls, their arguments, and the kernel that counts the labels of a large
batch.

A kernel with one program a row takes the ``arguments`` and ``constants`` of a ``Reduction`` and the number of rows,
calls ``share = mean_share(...)``, stores ``share`` times its loss in ``losses``, and ends with ``add_losses(...)``. The
number of rows should not be specialised, or the last batch of an epoch compiles the kernel again.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ltfast.ops.reduction import launch
from ltfast.ops.reduction.counter import zero_counter

LABELS, LOSSES = tl.constexpr(launch.LABELS), tl.constexpr(launch.LOSSES)

# Where the weight of a row in the reduced loss comes from.
ONE = tl.constexpr(0)  # not a mean: it is 1
ROWS = tl.constexpr(1)  # every row counts
COUNT = tl.constexpr(2)  # each program counts the labels
LOAD = tl.constexpr(3)  # a launch before this one has counted them


@triton.jit
def _weight(target, rows, ignore_index, ACC: tl.constexpr, BLOCK: tl.constexpr):
    count = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, rows, BLOCK):
        row = start + tl.arange(0, BLOCK)
        label = tl.load(target + row, mask=row < rows, other=0)
        count += ((row < rows) & (label != ignore_index)).to(tl.int32)
    return 1.0 / tl.sum(count).to(ACC)


@triton.jit
def mean_share(target, mean_weight, rows, ignore_index, SHARE: tl.constexpr, ACC: tl.constexpr):
    """The weight of a row in the reduced loss: infinite where all labels are ignored.

    target (rows,) int64; mean_weight (1,) ACC; each is read only where ``SHARE`` says so.
    """
    share = tl.full((), 1.0, ACC)
    if SHARE == ROWS:
        share = share / rows
    if SHARE == COUNT:
        share = _weight(target, rows, ignore_index, ACC, LABELS)
    if SHARE == LOAD:
        share = tl.load(mean_weight)
    return share


@triton.jit
def add_losses(losses, total, arrived, rows, ADD: tl.constexpr):
    """Called by every program after it has stored its losses. If ``ADD``, the last one to call it adds all of them.

    losses (rows,); total (1,), of the same dtype; arrived (1,) int32, 0 before and after.
    """
    if ADD:
        # The thread that has stored a program's loss adds 1 with release and acquire, so the thread that gets the last
        # ticket sees all losses. The barrier that hands the ticket to the other threads orders their loads after it.
        # Loads bypass L1, which other multiprocessors do not write to.
        ticket = tl.atomic_add(arrived, 1, sem="acq_rel", scope="gpu")
        if ticket == tl.num_programs(0) - 1:
            sums = tl.zeros((LOSSES,), losses.dtype.element_ty)
            for start in range(0, rows, LOSSES):
                row = start + tl.arange(0, LOSSES)
                sums += tl.load(losses + row, mask=row < rows, other=0.0, cache_modifier=".cg")
            tl.store(total, tl.sum(sums))
            tl.store(arrived, 0)


@triton.jit
def _mean_weight_kernel(target, weight, rows, ignore_index, BLOCK: tl.constexpr):
    """target (rows,) int64; weight (1,)."""
    tl.store(weight, _weight(target, rows, ignore_index, weight.dtype.element_ty, BLOCK))


def mean_weight(target: Tensor, ignore_index: int, dtype: torch.dtype) -> Tensor:
    """One over the number of labels (B,), int64, that are not ``ignore_index``: one value, infinite where all are."""
    weight = torch.empty((), dtype=dtype, device=target.device)
    _mean_weight_kernel[(1,)](target, weight, len(target), ignore_index, **launch.LAUNCH.options)
    return weight


@dataclass(frozen=True, slots=True)
class Reduction:
    """The reduction of a launch.

    Attributes:
        losses: (B,): each row's loss times its weight, written by the kernel.
        total: their sum, one value, if the kernel adds them.
        arrived: the counter of programs, if the kernel adds.
        mean_weight: one value, if ``share`` is ``LOAD``.
        share: where the weight comes from.
        none: whether the result is the losses themselves.
    """

    losses: Tensor
    total: Tensor | None
    arrived: Tensor | None
    mean_weight: Tensor | None
    share: int
    none: bool

    @property
    def arguments(self) -> tuple[Tensor | None, ...]:
        """Arguments of the kernel: losses, total, arrived, mean_weight."""
        return self.losses, self.total, self.arrived, self.mean_weight

    @property
    def constants(self) -> dict[str, Any]:
        """Constants of the kernel: SHARE and ADD."""
        return {"SHARE": self.share, "ADD": self.total is not None}

    def result(self) -> Tensor:
        """The reduced loss, once the kernel is launched."""
        if self.none:
            return self.losses
        return self.losses.sum() if self.total is None else self.total


def reduction_of(losses: Tensor, target: Tensor | None, reduction: str, ignore_index: int) -> Reduction:
    """The reduction of a kernel's losses.

    Args:
        losses: (B,), empty: float32 or float64.
        target: (B,), int64, or None where every row counts.
        reduction: "mean", "sum" or "none".
        ignore_index: the label of a row that does not count in the mean.
    """
    rows = len(losses)
    weight, share = None, ONE
    if reduction == "mean":
        share = ROWS if target is None else COUNT if rows <= launch.MOST_COUNTED else LOAD
        if target is not None and share is LOAD:
            weight = mean_weight(target, ignore_index, losses.dtype)
    none = reduction == "none"
    total = arrived = None
    if not none and 0 < rows <= launch.MOST_ADDED:  # without rows, no program would write the sum
        total, arrived = losses.new_empty(()), zero_counter(losses.device)
    return Reduction(losses, total, arrived, weight, share.value, none)
