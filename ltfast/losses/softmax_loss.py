import math
from typing import ClassVar

import torch
from torch import Tensor

from ltfast.losses.cross_entropy import shifted_cross_entropy
from ltfast.losses.fixed_dtype import FixedDtype
from ltfast.losses.rows import as_rows
from ltfast.ops.core.checks import (
    check_class_weight,
    check_integer,
    check_label_smoothing,
    check_reduction,
    check_reference_labels,
)
from ltfast.ops.core.tensors import accumulator, one_hot


class SoftmaxLoss(FixedDtype):
    """The base of losses over logits that take the arguments of ``nn.CrossEntropyLoss``.

    Attributes:
        names: what messages call the logits and the target.

    Args:
        shift: (C,), added to the logits of each class.
        weight, label_smoothing, ignore_index, reduction: as in ``nn.CrossEntropyLoss``.
    """

    names: ClassVar[tuple[str, str]] = ("logits", "target")
    shift: Tensor
    weight: Tensor | None

    def __init__(
        self, shift: Tensor, weight: Tensor | None, label_smoothing: float, ignore_index: int, reduction: str
    ) -> None:
        super().__init__()
        check_label_smoothing(label_smoothing)
        check_integer("ignore_index", ignore_index)
        check_reduction(reduction)
        check_class_weight(weight, len(shift))
        self.register_buffer("shift", shift.float(), persistent=False)
        self.register_buffer("weight", weight, persistent=False)
        self.label_smoothing = label_smoothing
        self.ignore_index, self.reduction = ignore_index, reduction

    @property
    def num_classes(self) -> int:
        return len(self.shift)

    def cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """The cross-entropy of ``logits + shift``; see ``shifted_cross_entropy`` for shapes and errors."""
        return shifted_cross_entropy(
            logits,
            self.shift,
            target,
            weight=self.weight,
            label_smoothing=self.label_smoothing,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            names=self.names,
        )

    def row_weights(self, labels: Tensor, dtype: torch.dtype) -> Tensor:
        """What each label counts in the mean, of the labels' shape: the weight of its class, or 0 if it is ignored."""
        counted = labels != self.ignore_index
        if self.weight is None:
            return counted.to(dtype)
        label = torch.where(counted, labels.long(), 0).clamp(0, self.num_classes - 1)
        return torch.where(counted, self.weight.to(dtype)[label], 0)

    def rows_and_targets(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The arguments as rows, for losses in plain PyTorch.

        Args:
            logits, target: as ``check_scores`` allows them.

        Returns:
            The logits (R, C), in the dtype of the arithmetic; the targets (R, C), one-hot or as they came; and whether
            the rows count, (R, 1). Those with an ignored label are 0 in both.

        Raises:
            ValueError: a label is out of range, on the CPU.
        """
        z = as_rows(logits)
        z = z.to(accumulator(z.dtype))
        if target.is_floating_point():
            return z, as_rows(target).to(z.dtype), torch.ones_like(z[:, :1], dtype=torch.bool)
        labels = target.flatten().long()
        check_reference_labels(labels, self.num_classes, ignore_index=self.ignore_index)
        counted = labels != self.ignore_index
        hot = one_hot(torch.where(counted, labels, 0), z) & counted[:, None]
        return torch.where(counted[:, None], z, 0), hot.to(z.dtype), counted[:, None]

    def smoothed(self, targets: Tensor, counted: Tensor) -> Tensor:
        """The targets of ``rows_and_targets``, smoothed and multiplied by the weights of the classes."""
        if self.label_smoothing:
            smooth = targets * (1 - self.label_smoothing) + self.label_smoothing / self.num_classes
            targets = torch.where(counted, smooth, 0)
        return targets if self.weight is None else targets * self.weight.to(targets.dtype)

    def reduce(self, rows: Tensor, target: Tensor) -> Tensor:
        """The reduction of the weighted losses of the rows, (R,), which are 0 for ignored labels."""
        soft = target.is_floating_point()
        if self.reduction == "none":
            return rows.view(target.shape[:1] + target.shape[2:] if soft else target.shape)
        if self.reduction == "sum":
            return rows.sum()
        if soft:
            return rows.mean()
        total = self.row_weights(target, rows.dtype).sum()
        # NaN if no label counts, like nn.CrossEntropyLoss, and without a gradient
        return torch.where(total == 0, math.nan, rows.sum() / torch.where(total == 0, 1, total))
