"""The projection head of contrastive learning, and a network with a classifier beside one."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltfast.models.classifier import ImageClassifier
from ltfast.ops.fused_loss import accumulator


class ProjectionHead(nn.Module):
    """Linear, BatchNorm, ReLU, linear, and each row divided by its length (Chen et al., "SimCLR", ICML 2020).

    Without BatchNorm it is MoCo v2's (Chen et al., "Improved Baselines with Momentum Contrastive Learning", 2020).

    Args:
        in_features: width of the backbone's features.
        feature_dim: width D of the projection.
        hidden_dim: width of the hidden layer; None means in_features.
        batch_norm: with BatchNorm.

    Shapes: features (B, in_features) -> (B, feature_dim) float32 (float64 for float64), rows of length 1. With
    BatchNorm B is at least 2 in training.

    Raises:
        ValueError: a size below 1.
    """

    def __init__(
        self, in_features: int, feature_dim: int = 128, *, hidden_dim: int | None = 512, batch_norm: bool = True
    ) -> None:
        super().__init__()
        hidden_dim = in_features if hidden_dim is None else hidden_dim
        for name, value in (("in_features", in_features), ("feature_dim", feature_dim), ("hidden_dim", hidden_dim)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.layers = nn.Sequential(
            nn.Linear(in_features, hidden_dim),
            *([nn.BatchNorm1d(hidden_dim)] if batch_norm else []),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_dim, feature_dim),
        )

    def forward(self, features: Tensor) -> Tensor:
        projection = self.layers(features)
        # half precision would lose the length's digits
        return F.normalize(projection.to(accumulator(projection.dtype)), dim=-1)


class TwoBranchClassifier(ImageClassifier):
    """An `ImageClassifier` with a projection head beside its classifier; `forward` gives the classifier's scores.

    A cosine classifier's weights start with length 1, as contrastive methods have it: the shorter they are, the faster
    they turn.

    Args:
        backbone, num_classes, head, in_chans, image_size, pretrained: see `ImageClassifier`.
        feature_dim, hidden_dim, batch_norm: see `ProjectionHead`.

    Raises:
        ValueError: as `ImageClassifier` and `ProjectionHead`.
    """

    def __init__(
        self,
        backbone: str,
        num_classes: int,
        *,
        head: Literal["linear", "cosine"] = "linear",
        feature_dim: int = 128,
        hidden_dim: int | None = 512,
        batch_norm: bool = True,
        in_chans: int = 3,
        image_size: int = 224,
        pretrained: bool = False,
    ) -> None:
        super().__init__(
            backbone, num_classes, head=head, in_chans=in_chans, image_size=image_size, pretrained=pretrained
        )
        if head == "cosine":
            with torch.no_grad():
                self.head.weight.copy_(F.normalize(self.head.weight, dim=-1))
        self.projection = ProjectionHead(
            self.head.in_features, feature_dim, hidden_dim=hidden_dim, batch_norm=batch_norm
        )

    def branches(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, in_chans, image_size, image_size) -> class scores (B, C), projections (B, feature_dim)."""
        features = self.backbone(images)
        return self.head(features), self.projection(features)
