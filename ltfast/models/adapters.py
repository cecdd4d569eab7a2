"""Adapters of frozen layers: small modules that are trained in place of the layers.

An adapter is called with the input of a layer and with the layer, and returns the adapted output. The initial values
are those of Shi et al., "Long-Tail Learning with Foundation Model: Heavy Fine-Tuning Hurts", ICML 2024 (LIFT). A new
adapter returns the output of the layer unchanged, except `SSF`, which starts at random.

Hugging Face's `peft` is not used: its LoRA adapts whole modules, so that the queries, keys and values of timm's fused
projection would share one update; it has neither SSF nor these bottlenecks; and it requires Transformers.
"""

from collections.abc import Callable
from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltfast.models.recompute import recomputed

Layer = Callable[[Tensor], Tensor]


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
        """The activations of the bottleneck, (..., width). Autograd keeps `x`, and not its normalised copy."""
        return recomputed(lambda x: F.relu(self.down(self.norm(x))), x)


class AdaptFormer(Bottleneck):
    """A bottleneck parallel to a layer, with a learned scale that starts at 1: `layer(x) + scale * up(hidden(x))`.

    Chen et al., "AdaptFormer: Adapting Vision Transformers for Scalable Visual Recognition", NeurIPS 2022. In a
    transformer it is parallel to the feed-forward network; its input is that of the network before normalisation.

    Shapes: (..., D) -> (..., D).
    """

    def __init__(self, dim: int, width: int) -> None:
        super().__init__(dim, width)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, layer: Layer) -> Tensor:
        # scaled weights instead of scaled outputs: autograd keeps (D, width) instead of (B, N, D)
        return layer(x) + F.linear(self.hidden(x), self.scale * self.up.weight, self.scale * self.up.bias)


class SequentialAdapter(Bottleneck):
    """A bottleneck in series with a layer: `y + up(hidden(y))` for the layer's output y.

    Houlsby et al., "Parameter-Efficient Transfer Learning for NLP", ICML 2019.

    Shapes: (..., anything) -> (..., D).
    """

    def forward(self, x: Tensor, layer: Layer) -> Tensor:
        y = layer(x)
        return y + self.up(self.hidden(y))


class LoRA(nn.Module):
    """A low-rank update of a linear layer: `layer(x) + x A B / rank`; B is zero at the start.

    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022.

    Args:
        in_features, out_features: widths of the layer.
        rank: width of A's output.

    Attributes:
        a: (in_features, rank).
        b: (rank, out_features).

    Shapes: (..., in_features) -> (..., out_features).
    """

    def __init__(self, in_features: int, out_features: int, rank: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(in_features, rank))
        self.b = nn.Parameter(torch.zeros(rank, out_features))
        nn.init.kaiming_uniform_(self.a, a=sqrt(5))

    def forward(self, x: Tensor, layer: Layer) -> Tensor:
        update = x @ self.a @ (self.b / self.b.shape[0])  # before the layer, which `recomputed` can then leave out
        return layer(x) + update


class SSF(nn.Module):
    """A scale and a shift of each feature of a layer's output: `scale * layer(x) + shift`.

    Lian et al., "Scaling & Shifting Your Features: A New Baseline for Efficient Model Tuning", NeurIPS 2022. At the
    start, the scales have the mean 1 and the shifts the mean 0, both with the standard deviation 0.02.

    Args:
        dim: number of features D.

    Shapes: (..., anything) -> (..., D).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(dim))
        self.shift = nn.Parameter(torch.empty(dim))
        nn.init.normal_(self.scale, 1.0, 0.02)
        nn.init.normal_(self.shift, 0.0, 0.02)

    def forward(self, x: Tensor, layer: Layer) -> Tensor:
        return layer(x) * self.scale + self.shift
