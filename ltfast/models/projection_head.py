"""The projection head of contrastive learning."""

from torch import Tensor, nn
from torch.nn import functional as F

from ltfast.ops.core.tensors import accumulator


class ProjectionHead(nn.Module):
    """Linear, BatchNorm, ReLU and linear layers followed by L2 normalisation (Chen et al., "SimCLR", ICML 2020).

    Without BatchNorm, it is the head of MoCo v2 (Chen et al., "Improved Baselines with Momentum Contrastive Learning",
    2020).

    Args:
        in_features: width of the backbone's features.
        feature_dim: width D of the projection.
        hidden_dim: width of the hidden layer; None means in_features.
        batch_norm: whether to use BatchNorm.

    Shapes: features (B, in_features) -> L2-normalised rows (B, feature_dim), float32 (float64 for float64). With
    BatchNorm, B must be at least 2 in training.

    Raises:
        ValueError: a size is below 1.
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
        # half precision would round the length
        return F.normalize(projection.to(accumulator(projection.dtype)), dim=-1)
