"""Collects the class scores of the test images from all processes."""

import torch
from accelerate import Accelerator
from accelerate.utils import gather
from torch import Tensor

from ltfast.errors import InputError

_NUMBERS = 2**24  # of each process in one exchange, 64 MiB


class Scores:
    """The class scores of this process's share of the test images. `add` is the argument `each` of
    `ltfast.engine.metrics.evaluate`.

    Args:
        num_classes: number of classes C.
    """

    def __init__(self, num_classes: int) -> None:
        self.scores = [torch.zeros(0, num_classes)]
        self.labels = [torch.zeros(0, dtype=torch.int64)]

    def add(self, scores: Tensor, labels: Tensor) -> None:
        """Append a batch: class scores (B, C) and labels (B,), on any device."""
        self.scores.append(scores.float().cpu())
        self.labels.append(labels.cpu())

    def gathered(self, accelerator: Accelerator) -> tuple[Tensor, Tensor] | None:
        """The class scores (N, C) float32 and the labels (N,) int64 of all N test images, in their order, on the CPU;
        None in processes other than the first. All processes must call it.

        Raises:
            InputError: the shares are not those of `Plan.test`.
        """
        scores, labels = torch.cat(self.scores), torch.cat(self.labels)
        count = accelerator.num_processes
        if count == 1:
            return scores, labels
        rows = gather(torch.tensor([len(labels)], device=accelerator.device)).tolist()
        total = sum(rows)
        expected = [len(range(rank, total, count)) for rank in range(count)]
        if rows != expected:
            raise InputError(f"test images: expected shares of {expected} images in the processes, got {rows}")
        step = max(1, _NUMBERS // scores.shape[1])
        parts = []
        for start in range(0, rows[0], step):
            size = min(step, rows[0] - start)
            part = (_joined(tensor[start : start + size], size, accelerator) for tensor in (scores, labels))
            if accelerator.is_main_process:
                parts.append([tensor.cpu() for tensor in part])
            else:
                list(part)
        if not accelerator.is_main_process:
            return None
        scores, labels = (torch.cat(tensors)[:total] for tensors in zip(*parts, strict=True))
        return scores, labels


def _joined(rows: Tensor, size: int, accelerator: Accelerator) -> Tensor:
    """The rows of all processes, in turn: the first of each, the second of each, ... Padded to `size` rows each."""
    padded = torch.zeros(size, *rows.shape[1:], dtype=rows.dtype, device=accelerator.device)
    padded[: len(rows)] = rows.to(accelerator.device)
    return gather(padded[None]).transpose(0, 1).flatten(0, 1)
