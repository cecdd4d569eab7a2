"""A backbone's last feature map, whatever its family."""

import math
from typing import Any

from torch import Tensor


def feature_map(backbone: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """The map before pooling, and the pooled features that the backbone gives.

    Args:
        backbone: a timm model without its head.
        images: (B, channels, S, S).

    Returns:
        The map (B, C, H, W), and the features (B, D). A vision transformer's patch tokens are its map.

    Raises:
        ValueError: tokens that do not fill a square.
    """
    features = backbone.forward_features(images)
    pooled = backbone.forward_head(features)
    if features.dim() == 3:
        tokens = features[:, getattr(backbone, "num_prefix_tokens", 0) :]
        side = math.isqrt(tokens.shape[1])
        if side * side != tokens.shape[1]:
            raise ValueError(f"the backbone gives {tokens.shape[1]} tokens: expected a square number of them")
        return tokens.transpose(1, 2).unflatten(2, (side, side)), pooled
    if features.shape[1] != backbone.num_features and features.shape[-1] == backbone.num_features:
        return features.permute(0, 3, 1, 2), pooled  # Swin's and others' channels come last
    return features, pooled
