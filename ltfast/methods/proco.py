"""ProCo: Du et al., "Probabilistic Contrastive Learning for Long-Tailed Visual Recognition", TPAMI 2024.

The method has one stage, which trains two branches on one backbone: a classifier with logit-adjusted cross-entropy on a
first view of each image, and a projection head with ProCo's expected contrastive loss on two more views. Predictions
use the classifier only.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ltfast.engine import Batches, Optimisation, Plan, Stage
from ltfast.methods.context import BuildContext
from ltfast.methods.fused_classifier import classifier_loss, fused_loss
from ltfast.methods.old_names import accept_old_names
from ltfast.methods.settings import loss_weight, unless_auto
from ltfast.methods.settings.proco import Settings

if TYPE_CHECKING:
    from ltfast.data import DataBundle
    from ltfast.losses import ProCoBranch
    from ltfast.models import ImageClassifier

_COSINE_SCALE = 30.0  # the authors' choice


class ProCoStage(Stage):
    """`classifier_loss(scores of view 1) + contrast_weight * branch(features of views 2 and 3)`."""

    def __init__(
        self,
        name: str,
        batches: Batches,
        optimisation: Optimisation,
        *,
        network: "ImageClassifier",
        classifier_loss: nn.Module,
        branch: "ProCoBranch",
        contrast_weight: float = 1.0,
        scale: float = 1.0,
    ) -> None:
        """
        Args:
            name, batches, optimisation: see `Stage`; the batches have three views.
            network: backbone and classifier.
            classifier_loss: the loss of the classifier, from `fused_loss`.
            branch: the contrastive branch with its loss.
            contrast_weight: the weight of the branch's loss in the sum.
            scale: a factor of the classifier's scores.
        """
        super().__init__(name, batches, optimisation)
        self.network = network
        self.classifier_loss = classifier_loss
        self.branch = branch
        self.contrast_weight = contrast_weight
        self.scale = scale
        accept_old_names(self, {"network.projection.": "branch.projection.", "contrast_loss.loss.": "branch.loss."})

    def replicated(self) -> Iterable[Tensor]:
        return self.branch.loss.buffers()

    def start_epoch(self) -> None:
        self.branch.start_epoch()

    def forward(self, batch: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        *views, labels = batch
        # one batch, as in the authors' code, so that BatchNorm's statistics cover all views in both branches
        features = self.network.features(torch.cat(views))
        n, head = len(labels), self.network.head
        classifier = classifier_loss(self.classifier_loss, head, features[:n], labels, scale=self.scale)
        contrast = self.branch(features, labels, skip=n)
        return classifier + self.contrast_weight * contrast, {"classifier_loss": classifier, "contrast_loss": contrast}

    def predict(self, *views: Tensor) -> Tensor:
        (images,) = views
        return self.scale * self.network(images)

    def losses(self) -> Sequence[nn.Module]:
        return [self.classifier_loss, self.branch.loss]


def build(
    settings: Settings,
    bundle: "DataBundle",
    context: BuildContext,
) -> Plan:
    """The plan with its one stage. The initial weights come from torch's global generator.

    Raises:
        ValueError: a setting does not fit the data.
    """
    # importing these takes seconds, and --help does not need them
    from ltfast.data import train_transform
    from ltfast.losses import LogitAdjustedLoss, ProCoBranch
    from ltfast.methods.batches import evaluation_batches, train_batches, validation_batches
    from ltfast.methods.start import initial_weights
    from ltfast.models import ImageClassifier

    settings = settings.chosen(bundle)
    size = settings.size_for(bundle)
    policies = (settings.augment, settings.contrast_augment, settings.contrast_augment)
    batches = train_batches(
        bundle,
        [train_transform(bundle, policy, size) for policy in policies],
        batch_size=settings.batch_size,
        context=context,
    )
    network = ImageClassifier(
        settings.backbone,
        bundle.num_classes,
        head=settings.classifier,
        in_chans=bundle.channels,
        image_size=size,
        pretrained=settings.pretrained,
    )
    loss = LogitAdjustedLoss(
        bundle.class_counts,
        weight=loss_weight(settings, bundle.class_counts),
        label_smoothing=unless_auto(settings.label_smoothing, 0.0),
    )
    stage = ProCoStage(
        "train",
        batches,
        settings,
        network=network,
        classifier_loss=fused_loss(loss, context, rows=settings.batch_size, num_classes=bundle.num_classes),
        branch=ProCoBranch(
            network.head.in_features,
            bundle.num_classes,
            bundle.class_counts,
            feature_dim=settings.feature_dim,
            hidden_dim=settings.hidden_dim,
            temperature=settings.temperature,
        ),
        contrast_weight=settings.contrast_weight,
        scale=_COSINE_SCALE if settings.classifier == "cosine" else 1.0,
    )
    stage.initial = initial_weights(settings, bundle, context, network.backbone, network.head)
    test = evaluation_batches(bundle, size, context=context)
    validation = validation_batches(bundle, size, context=context)
    return Plan([stage], test, validation=validation)
