from torch import Tensor, nn

from ltfast.losses.proco import ProCoLoss
from ltfast.ops.core.checks import check_integer, check_matrix
from ltfast.ops.core.class_counts import ClassCounts


class UpdatedProCoLoss(ProCoLoss):
    """``ProCoLoss`` that adds each training batch to its statistics before it computes the loss. In evaluation mode the
    statistics do not change."""

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        if self.training:
            self.update(features.detach(), labels)
        return super().forward(features, labels)


class ProCoBranch(nn.Module):
    """The contrastive branch of ProCo beside a classifier: projection head, statistics of the classes, and loss.

    Du et al., "Probabilistic Contrastive Learning for Long-Tailed Visual Recognition", TPAMI 2024. In your own training
    loop, the branch takes the features from which the classifier computes its scores:

        branch = ProCoBranch(backbone.num_features, num_classes, class_counts)
        for epoch in range(epochs):
            branch.start_epoch()
            for (view1, view2, view3), labels in batches:
                features, rows = backbone(torch.cat([view1, view2, view3])), len(labels)
                loss = criterion(classifier(features[:rows]), labels) + branch(features, labels, skip=rows)

    In training mode each call adds its features to the statistics of the classes. In evaluation mode a call changes no
    state. Train the branch's parameters together with those of the network. Predictions do not need the branch.

    Args:
        width: width of the backbone's features.
        num_classes: C, at least 1.
        class_counts: (C,), training images of each class; see ``ProCoLoss``. None adds no log-frequencies.
        feature_dim: width of the projection, at least 2.
        hidden_dim: width of the projection head's hidden layer; None means ``width``.
        temperature: tau, over 0.

    Shapes: features (N, width), any float dtype; labels (B,), int64. The loss is a scalar, float32 (float64 for
    float64).

    ``state_dict`` contains the projection head and the statistics. Under ``torch.distributed`` the statistics cover the
    batches of all processes, which must call the branch equally often.

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it.
    """

    def __init__(
        self,
        width: int,
        num_classes: int,
        class_counts: ClassCounts | None = None,
        *,
        feature_dim: int = 128,
        hidden_dim: int | None = 512,
        temperature: float = 0.1,
    ) -> None:
        from ltfast.models import ProjectionHead  # this package imports timm, which takes seconds

        super().__init__()
        if width < 1:
            raise ValueError(f"width is {width}: expected at least 1")
        self.width = width
        self.projection = ProjectionHead(width, feature_dim, hidden_dim=hidden_dim)
        self.loss = UpdatedProCoLoss(num_classes, feature_dim, temperature=temperature, class_counts=class_counts)

    def start_epoch(self) -> None:
        """Start an epoch: from now on, the statistics use the epoch that ends and the new one."""
        self.loss.start_epoch()

    def forward(self, features: Tensor, labels: Tensor, *, skip: int = 0) -> Tensor:
        """Compute the mean loss over the features after the first ``skip``.

        Args:
            features: (skip + V B, width), the features of V views of each image, one view after the other, as
                ``backbone(torch.cat(views))`` returns them.
            labels: (B,), integers in [0, C), or -100 for images that are excluded.
            skip: number of features at the start that pass through the projection head only. The authors pass the
                classifier's view through it, so that the statistics of its BatchNorm cover all views.

        Returns:
            A scalar.

        Raises:
            ValueError, TypeError: an argument is invalid; the message names it.
        """
        check_matrix(features, "features", f"(rows, {self.width})")
        if features.shape[1] != self.width:
            raise ValueError(f"features has shape {tuple(features.shape)}: expected (rows, {self.width})")
        if not isinstance(labels, Tensor) or labels.dim() != 1 or len(labels) == 0:
            what = f"has shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else f"is a {type(labels).__name__}"
            raise ValueError(f"labels {what}: expected (batch,), one label per image, not empty")
        check_integer("skip", skip)
        rows = len(features) - skip
        if skip < 0 or rows < 1 or rows % len(labels):
            raise ValueError(
                f"features has {len(features)} rows, and skip is {skip}: expected {len(labels)} more rows than skip, "
                "one per label, or a multiple of them, one view after the other"
            )
        return self.loss(self.projection(features)[skip:], labels.repeat(rows // len(labels)))

    def extra_repr(self) -> str:
        return f"width={self.width}"
