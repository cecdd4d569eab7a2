"""The last feature map of a convolutional or transformer backbone."""

import math
from typing import Any

from torch import Tensor


def feature_map(backbone: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the feature map before pooling, and the pooled features.

    Args:
        backbone: a timm model without its head.
        images: (B, channels, S, S).

    Returns:
        The feature map (B, C, H, W), for a vision transformer its patch tokens, and the pooled features (B, D).

    Raises:
        ValueError: the number of patch tokens is not a square.
    """
    features = backbone.forward_features(images)
    pooled = backbone.forward_head(features)
    if features.dim() == 3:
        tokens = features[:, getattr(backbone, "num_prefix_tokens", 0) :]
        side = math.isqrt(tokens.shape[1])
        if side * side != tokens.shape[1]:
            raise ValueError(f"the backbone returns {tokens.shape[1]} patch tokens: expected a square number")
        return tokens.transpose(1, 2).unflatten(2, (side, side)), pooled
    if features.shape[1] != backbone.num_features and features.shape[-1] == backbone.num_features:
        return features.permute(0, 3, 1, 2), pooled  # Swin and others have the channels last
    return features, pooled
