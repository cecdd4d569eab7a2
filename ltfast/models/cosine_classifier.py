"""The cosine classifier."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CosineClassifier(nn.Module):
    """The cosine of the angle between a feature and the weight of each class (Gidaris & Komodakis, CVPR 2018).

    It has no scale: the loss applies its own (`ltfast.losses.AGCLLoss` has `scale=20`, `LDAMLoss` has `scale=30`).

    Args:
        in_features: width D of the features.
        num_classes: number of classes C.

    Shapes: features (B, D) -> cosines (B, C) in [-1, 1], in the features' dtype.

    Raises:
        ValueError: a size is below 1, or the last dimension of the features is not `in_features`.
    """

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        for name, value in (("in_features", in_features), ("num_classes", num_classes)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.in_features = in_features
        self.num_classes = num_classes
        self.weight = nn.Parameter(torch.empty(num_classes, in_features))
        # Uniform on the unit sphere. The length does not affect the cosine, but the gradient is divided by it;
        # published learning rates assume length 1.
        nn.init.normal_(self.weight)
        self.weight.data = F.normalize(self.weight.data, dim=-1)

    def forward(self, features: Tensor) -> Tensor:
        # Rounding can exceed [-1, 1] by one ulp; the clamp keeps functions such as acos finite.
        return F.linear(*self.unit(features)).clamp(-1.0, 1.0)

    def unit(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The features and the weight (C, D), each row divided by its length, in the features' dtype."""
        if features.shape[-1] != self.in_features:
            raise ValueError(f"features must have {self.in_features} columns, got shape {tuple(features.shape)}")
        # Norms need float32 at least: under autocast, half-precision features would lose precision or overflow.
        wide = features.to(torch.promote_types(features.dtype, torch.float32))
        return F.normalize(wide, dim=-1).to(features.dtype), F.normalize(self.weight, dim=-1).to(features.dtype)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, num_classes={self.num_classes}"
