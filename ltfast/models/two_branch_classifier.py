"""A network with a classifier and a projection head."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ltfast.models.classifier import ImageClassifier
from ltfast.models.projection_head import ProjectionHead


class TwoBranchClassifier(ImageClassifier):
    """An `ImageClassifier` with an additional projection head; `forward` returns the class scores.

    The weights of a cosine classifier are initialised with length 1, as in contrastive methods: the shorter they are,
    the faster their direction changes.

    Args:
        backbone, num_classes, head, in_chans, image_size, pretrained: see `ImageClassifier`.
        feature_dim, hidden_dim, batch_norm: see `ProjectionHead`.

    Raises:
        ValueError: see `ImageClassifier` and `ProjectionHead`.
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
