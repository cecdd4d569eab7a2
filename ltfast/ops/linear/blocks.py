"""The forward and backward pass of a linear layer and a fused loss, one block of rows at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ltfast.ops.core.tensors import accumulator

# Logits of a block, where that is not too few rows for fast products.
BUDGET = {"cpu": 2**22, "cuda": 2**23}
FEWEST = 128  # rows


def block_rows(rows: int, classes: int, device: str) -> int:
    """Rows of a block. With very many classes a block has as many logits as 128 rows have."""
    return min(rows, max(BUDGET[device] // classes, FEWEST))


class Wanted(NamedTuple):
    """Whether the gradient of an argument is wanted."""

    features: bool
    weight: bool
    bias: bool


@dataclass(frozen=True, slots=True)
class Layer:
    """A linear layer, and the inputs of its loss.

    Attributes:
        features: (B, D).
        weight: (C, D).
        bias: (C,), or None.
        others: the tensors of the loss beside the logits; first the target, of which a block takes its rows.
        dtype: of the logits and of the matrix products.
    """

    features: Tensor
    weight: Tensor
    bias: Tensor | None
    others: Sequence[Tensor | None]
    dtype: torch.dtype

    def blocks(self) -> Iterator[tuple[slice, Tensor, Tensor, Sequence[Tensor | None]]]:
        """Of each block: its rows, their features, their logits, and the tensors of the loss. The memory of the logits
        is used again."""
        weight = self.weight.to(self.dtype)
        bias = None if self.bias is None else self.bias.to(self.dtype)
        target, *others = self.others
        rows, classes = len(self.features), len(weight)
        step = block_rows(rows, classes, weight.device.type)
        buffer = torch.empty(step, classes, dtype=self.dtype, device=weight.device)
        for start in range(0, rows, step):
            block = slice(start, min(start + step, rows))
            x = self.features[block].to(self.dtype)
            logits = buffer[: len(x)]
            if bias is None:
                torch.mm(x, weight.T, out=logits)
            else:
                torch.addmm(bias, x, weight.T, out=logits)
            yield block, x, logits, [None if target is None else target[block], *others]


class Gradients:
    """The gradients of a layer's arguments, added up block by block; each is None if nobody wants it.

    Those of weight and bias are in float32 meanwhile, or in float64 for float64.
    """

    def __init__(self, layer: Layer, wanted: Wanted) -> None:
        dtype, weight = accumulator(layer.dtype), layer.weight
        self._products = weight.to(layer.dtype)
        self.features = layer.features.new_empty(layer.features.shape) if wanted.features else None
        self.weight = weight.new_empty(weight.shape, dtype=dtype) if wanted.weight else None
        self.bias = weight.new_empty(len(weight), dtype=dtype) if wanted.bias else None

    def add(self, block: slice, x: Tensor, of_logits: Tensor) -> None:
        """Add the part of a block: its rows, their features, and the gradient in their logits."""
        kept = 0 if block.start == 0 else 1  # the first block overwrites what is in memory
        if self.features is not None:
            part = self.features[block]
            if part.dtype == of_logits.dtype:
                torch.mm(of_logits, self._products, out=part)
            else:
                part.copy_(of_logits @ self._products)
        if self.weight is not None:
            if self.weight.dtype == of_logits.dtype:
                self.weight.addmm_(of_logits.T, x, beta=kept)
            elif kept:
                self.weight += of_logits.T @ x
            else:
                self.weight.copy_(of_logits.T @ x)
        if self.bias is not None:
            total = of_logits.sum(0, dtype=self.bias.dtype)
            self.bias = self.bias + total if kept else total

    def tensors(self) -> tuple[Tensor, ...]:
        """Those of features, weight and bias; without elements if they are not wanted."""
        parts = (self.features, self.weight, self.bias)
        return tuple(self._products.new_empty(0) if x is None else x for x in parts)
