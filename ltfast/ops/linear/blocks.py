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
    """Rows of a block, at least 1. With very many classes a block has as many logits as 128 rows have."""
    return min(max(rows, 1), max(BUDGET[device] // classes, FEWEST))


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
        target: (B,) labels or (B, C) probabilities.
        others: the other tensors of the loss beside the logits, the same for all rows.
        dtype: of the logits and of the matrix products.
        cosine: whether the rows of features and weight are divided by their lengths.
    """

    features: Tensor
    weight: Tensor
    bias: Tensor | None
    target: Tensor
    others: Sequence[Tensor | None]
    dtype: torch.dtype
    cosine: bool


@dataclass(frozen=True, slots=True)
class Factor:
    """A factor of a matrix product, (N, D), and with cosines the lengths by which its rows were divided, (N, 1)."""

    rows: Tensor
    lengths: Tensor | None

    def original(self, gradient: Tensor) -> Tensor:
        """The gradient in the rows before the division, from that in ``rows``, whose memory is used again."""
        if self.lengths is None:
            return gradient
        along = torch.einsum("nd,nd->n", self.rows.to(gradient.dtype), gradient)[:, None]
        along = torch.where(self.lengths > SHORTEST, along, 0)
        return gradient.addcmul_(self.rows, along, value=-1).div_(self.lengths)


SHORTEST = 1e-12  # shorter rows are divided by this, as in F.normalize


def factor(rows: Tensor, layer: Layer) -> Factor:
    """Rows of the features, or the weight, as the products take them."""
    if not layer.cosine:
        return Factor(rows.to(layer.dtype), None)
    wide = rows.to(accumulator(layer.dtype))  # squares of half-precision numbers overflow
    lengths = torch.linalg.vector_norm(wide, dim=1, keepdim=True).clamp(min=SHORTEST)
    return Factor((wide / lengths).to(layer.dtype), lengths)


@dataclass(frozen=True, slots=True)
class Block:
    """Some rows of a batch: which, their features, their logits, and the tensors of the loss."""

    place: slice
    features: Factor
    logits: Tensor
    others: Sequence[Tensor | None]


def blocks(layer: Layer, weight: Factor) -> Iterator[Block]:
    """The blocks of a batch. The memory of the logits is used again."""
    bias = None if layer.bias is None else layer.bias.to(layer.dtype)
    rows, classes = len(layer.features), len(weight.rows)
    step = block_rows(rows, classes, weight.rows.device.type)
    buffer = torch.empty(step, classes, dtype=layer.dtype, device=weight.rows.device)
    for start in range(0, rows, step):
        place = slice(start, min(start + step, rows))
        features = factor(layer.features[place], layer)
        logits = buffer[: place.stop - start]
        if bias is None:
            torch.mm(features.rows, weight.rows.T, out=logits)
        else:
            torch.addmm(bias, features.rows, weight.rows.T, out=logits)
        yield Block(place, features, logits, [layer.target[place], *layer.others])


class Gradients:
    """The gradients of a layer's arguments, added up block by block; each is None if nobody wants it.

    Those of weight and bias are in float32 meanwhile, or in float64 for float64.
    """

    def __init__(self, layer: Layer, weight: Factor, wanted: Wanted) -> None:
        dtype = accumulator(layer.dtype)
        self._weight = weight
        new = layer.weight.new_empty if len(layer.features) else layer.weight.new_zeros  # no block will overwrite it
        self.of_features = layer.features.new_empty(layer.features.shape) if wanted.features else None
        self.of_weight = new(layer.weight.shape, dtype=dtype) if wanted.weight else None
        self.of_bias = new(len(layer.weight), dtype=dtype) if wanted.bias else None

    def add(self, block: Block, of_logits: Tensor) -> None:
        """Add the part of a block, from the gradient in its logits."""
        kept = 0 if block.place.start == 0 else 1  # the first block overwrites what is in memory
        if self.of_features is not None:
            part = self.of_features[block.place]
            if part.dtype == of_logits.dtype and block.features.lengths is None:
                torch.mm(of_logits, self._weight.rows, out=part)
            else:
                product = (of_logits @ self._weight.rows).to(accumulator(of_logits.dtype))
                part.copy_(block.features.original(product))
        if self.of_weight is not None:
            if self.of_weight.dtype == of_logits.dtype:
                self.of_weight.addmm_(of_logits.T, block.features.rows, beta=kept)
            elif kept:
                self.of_weight += of_logits.T @ block.features.rows
            else:
                self.of_weight.copy_(of_logits.T @ block.features.rows)
        if self.of_bias is not None:
            total = of_logits.sum(0, dtype=self.of_bias.dtype)
            self.of_bias = self.of_bias + total if kept else total

    def tensors(self) -> tuple[Tensor, ...]:
        """Those of features, weight and bias, once all blocks are added; without elements if they are not wanted."""
        of_weight = None if self.of_weight is None else self._weight.original(self.of_weight)
        parts = (self.of_features, of_weight, self.of_bias)
        return tuple(self._weight.rows.new_empty(0) if x is None else x for x in parts)
