"""DSCL: Xuan and Zhang, "Decoupled Contrastive Learning for Long-Tailed Recognition", AAAI 2024.

The method has two stages. The first trains the backbone with the decoupled contrastive loss between a query view and a
momentum encoder's keys, which are those of the batch and of a long queue. Patches cropped from the query view also
learn to have the same similarities to all keys as the same patches pooled from the query's feature map. The second
stage trains a linear classifier on the frozen backbone, with class-balanced batches.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ltfast.engine import Batches, Optimisation, Plan, Stage, check
from ltfast.errors import InputError
from ltfast.methods.context import BuildContext
from ltfast.methods.fused_classifier import fused_loss
from ltfast.methods.old_names import accept_old_names
from ltfast.methods.settings import loss_weight, unless_auto
from ltfast.methods.settings.dscl import Settings
from ltfast.methods.supervised_stage import SupervisedStage

if TYPE_CHECKING:
    from ltfast.data import DataBundle
    from ltfast.losses import QueueContrast


class ContrastStage(Stage):
    """Trains an encoder; the batches are `((query, key, patches, boxes), labels)`."""

    evaluated = False

    def __init__(self, name: str, batches: Batches, optimisation: Optimisation, *, contrast: "QueueContrast") -> None:
        """
        Args:
            name, batches, optimisation: see `Stage`.
            contrast: the encoder with the losses. A `pbsd_weight` of 0 leaves out the patches.
        """
        super().__init__(name, batches, optimisation)
        self.contrast = contrast
        accept_old_names(
            self,
            {
                "network.backbone.": "contrast.encoder.",
                "network.projection.": "contrast.projection.",
                "key_network.module.backbone.": "contrast.key_network.encoder.",
                "key_network.module.projection.": "contrast.key_network.projection.",
                "queue_losses.": "contrast.losses.",
                "network.head.": None,
                "key_network.module.head.": None,
            },
        )

    def trained(self) -> Iterable[nn.Parameter]:
        yield from self.contrast.encoder.parameters()
        yield from self.contrast.projection.parameters()

    def replicated(self) -> Iterable[Tensor]:
        return self.contrast.losses.buffers()

    def train(self, mode: bool = True) -> "ContrastStage":
        super().train(mode)
        # the key network stays in training mode, so that BatchNorm's running statistics, which are copied, are not used
        self.contrast.key_network.train(mode)
        return self

    def start(self) -> None:
        super().start()
        self.contrast.copy_encoder()

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        (query_images, key_images, patches, boxes), labels = batch
        of_patches = () if self.contrast.pbsd_weight == 0 else (patches, boxes)
        parts = self.contrast.parts(query_images, key_images, labels, *of_patches)
        return self.contrast.total(parts), parts

    def after_step(self) -> None:
        self.contrast.after_step()

    def before_save(self) -> None:
        self.contrast.losses.queue.collect()

    def losses(self) -> Sequence[nn.Module]:
        return [self.contrast.losses]


class ClassifierStage(SupervisedStage):
    """Trains the linear classifier only."""

    epochs_setting = "classifier_epochs"

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        accept_old_names(self, {"network.projection.": None})

    def trained(self) -> Iterable[nn.Parameter]:
        return self.network.head.parameters()

    def losses(self) -> Sequence[nn.Module]:
        return []  # the times of a run are those of the first stage


def build(
    settings: Settings,
    bundle: "DataBundle",
    context: BuildContext,
) -> Plan:
    """The plan with both stages. The initial weights come from torch's global generator.

    Raises:
        ValueError: a setting does not fit the data or the backbone.
    """
    # importing these takes seconds, and --help does not need them
    from ltfast.data import PatchViews, train_transform
    from ltfast.losses import QueueContrast
    from ltfast.methods.batches import evaluation_batches, train_batches, validation_batches
    from ltfast.methods.check_batch_norm import check_batch_norm
    from ltfast.methods.start import initial_weights
    from ltfast.models import ImageClassifier

    settings = settings.chosen(bundle)
    chosen: Any = settings  # no type says that none of these is "auto"
    size = settings.size_for(bundle)
    enough = not settings.queue_sharded or chosen.queue_size >= context.world_size
    check(enough, "queue_size", f"at least {context.world_size}, one key per process", chosen.queue_size)
    network = ImageClassifier(
        settings.backbone,
        bundle.num_classes,
        in_chans=bundle.channels,
        image_size=size,
        pretrained=settings.pretrained,
    )
    queue_contrast = QueueContrast(
        network.backbone,
        network.head.in_features,
        bundle.num_classes,
        feature_dim=settings.feature_dim,
        queue_size=chosen.queue_size,
        momentum=settings.key_momentum,
        temperature=settings.temperature,
        beta=settings.beta,
        pbsd_weight=settings.pbsd_weight,
        queue_sharded=settings.queue_sharded,
    )
    with_patches = settings.pbsd_weight > 0
    if with_patches:
        _check_patch_size(network, settings.backbone, size, chosen.patch_size, bundle.channels)
    together = context.normalised_together(settings.batch_size)
    check_batch_norm(network, (bundle.channels, size, size), together, "batch_size")
    if with_patches:
        patch_shape = (bundle.channels, chosen.patch_size, chosen.patch_size)
        check_batch_norm(network, patch_shape, together * settings.patches, "patches")
    views = PatchViews(
        bundle,
        chosen.augment,
        size,
        patches=settings.patches if with_patches else 0,
        patch_size=chosen.patch_size,
        scale=settings.patch_scale,
    )
    contrast_batches = train_batches(bundle, [views], batch_size=settings.batch_size, context=context)
    contrast = ContrastStage("contrast", contrast_batches, settings, contrast=queue_contrast)
    contrast.initial = initial_weights(settings, bundle, context, network.backbone, network.head)
    batch_size = min(settings.classifier_batch_size, max(len(bundle.train) // context.world_size, 1))
    together = context.normalised_together(batch_size)
    check_batch_norm(network, (bundle.channels, size, size), together, "classifier_batch_size")
    classifier_batches = train_batches(
        bundle,
        [train_transform(bundle, chosen.classifier_augment, size)],
        batch_size=batch_size,
        sampler="class_balanced",
        start_draw=contrast_batches.batches.draws_per_epoch * settings.epochs,
        context=context,
    )
    weight = loss_weight(settings, bundle.class_counts)
    loss = nn.CrossEntropyLoss(weight, label_smoothing=unless_auto(settings.label_smoothing, 0.0))
    images = batch_size * context.world_size * min(context.run.accumulate, len(classifier_batches))
    classifier = ClassifierStage(
        "classifier",
        classifier_batches,
        settings.of_classifier(batch_size, images),
        network=network,
        loss=fused_loss(loss, context, rows=batch_size, num_classes=bundle.num_classes),
    )
    test = evaluation_batches(bundle, size, context=context)
    validation = validation_batches(bundle, size, context=context)
    return Plan([contrast, classifier], test, validation=validation)


def _check_patch_size(network: nn.Module, backbone: str, size: int, patch_size: int, channels: int) -> None:
    """Check that the backbone accepts patches of this size, and that its feature map is as wide as its features.

    Raises:
        ValueError: a check fails.
    """
    from ltfast.models import feature_map

    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            maps, features = feature_map(network.backbone, torch.zeros(1, channels, size, size))
            feature_map(network.backbone, torch.zeros(1, channels, patch_size, patch_size))
    except Exception as error:  # timm's models raise errors of many types
        raise InputError(
            f"expected a size that {backbone} takes (the image's, {size}, is one), got {patch_size}: {error}",
            name="patch_size",
        ) from error
    finally:
        network.train(was_training)
    if maps.shape[1] != features.shape[1]:
        raise InputError(
            f"expected one whose feature map is as wide as its features ({features.shape[1]}), for patches "
            f"to be pooled from it, got {backbone} ({maps.shape[1]}); --pbsd-weight 0 needs no patches",
            name="backbone",
        )
