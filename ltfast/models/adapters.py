"""Adapters for the frozen layers of a vision transformer: small modules that are trained in their place.

An adapter is called with the input and the output of what it adapts, and returns the new output. The initial values are
those of Shi et al., "Long-Tail Learning with Foundation Model: Heavy Fine-Tuning Hurts", ICML 2024 (LIFT). With the
exception of `SSF`, whose authors start at random, a new adapter returns the output unchanged.
"""

from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Bottleneck(nn.Module):
    """LayerNorm, a linear layer to a small width, ReLU, and a linear layer back, which is zero at the start.

    Args:
        dim: width of the tokens D.
        width: width of the bottleneck.

    Shapes: (..., D) -> (..., D).
    """

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.down = nn.Linear(dim, width)
        self.up = nn.Linear(width, dim)
        nn.init.kaiming_normal_(self.down.weight, a=sqrt(5))
        for tensor in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(tensor)

    def hidden(self, x: Tensor) -> Tensor:
        """The activations of the bottleneck, (..., width)."""
        return F.relu(self.down(self.norm(x)))


class AdaptFormer(Bottleneck):
    """A bottleneck parallel to a layer, with a learned scale that is 1 at the start: `output + scale * up(hidden)`.

    Chen et al., "AdaptFormer: Adapting Vision Transformers for Scalable Visual Recognition", NeurIPS 2022. In a
    transformer it is parallel to the feed-forward network; its input is that of the network before normalisation.

    Shapes: input (..., D), output (..., D) -> (..., D).
    """

    def __init__(self, dim: int, width: int) -> None:
        super().__init__(dim, width)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        # scaled weights instead of scaled outputs: autograd keeps (D, width) instead of (B, N, D)
        return outputs + F.linear(self.hidden(inputs), self.scale * self.up.weight, self.scale * self.up.bias)


class SequentialAdapter(Bottleneck):
    """A bottleneck in series with a layer: `output + up(hidden of the output)`.

    Houlsby et al., "Parameter-Efficient Transfer Learning for NLP", ICML 2019.

    Shapes: input (anything), output (..., D) -> (..., D).
    """

    def forward(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        return outputs + self.up(self.hidden(outputs))


class LoRA(nn.Module):
    """A low-rank update of a linear layer: `output + input A B / rank`; B is zero at the start.

    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022.

    Args:
        in_features, out_features: widths of the layer.
        rank: width of A's output.

    Attributes:
        a: (in_features, rank).
        b: (rank, out_features).

    Shapes: input (..., in_features), output (..., out_features) -> (..., out_features).
    """

    def __init__(self, in_features: int, out_features: int, rank: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(in_features, rank))
        self.b = nn.Parameter(torch.zeros(rank, out_features))
        nn.init.kaiming_uniform_(self.a, a=sqrt(5))

    def forward(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        return outputs + inputs @ self.a @ (self.b / self.b.shape[0])


class SSF(nn.Module):
    """A scale and a shift of each feature: `scale * output + shift`.

    Lian et al., "Scaling & Shifting Your Features: A New Baseline for Efficient Model Tuning", NeurIPS 2022. At the
    start, the scales have the mean 1 and the shifts the mean 0, both with the standard deviation 0.02.

    Args:
        dim: number of features D.

    Shapes: input (anything), output (..., D) -> (..., D).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(dim))
        self.shift = nn.Parameter(torch.empty(dim))
        nn.init.normal_(self.scale, 1.0, 0.02)
        nn.init.normal_(self.shift, 0.0, 0.02)

    def forward(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        return outputs * self.scale + self.shift
