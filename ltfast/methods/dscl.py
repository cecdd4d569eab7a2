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
from ltfast.methods.settings import loss_weight, unless_auto
from ltfast.methods.settings.dscl import Settings
from ltfast.methods.supervised_stage import SupervisedStage

if TYPE_CHECKING:
    from ltfast.data import DataBundle
    from ltfast.losses import DSCLLoss, MemoryQueue, PBSDLoss
    from ltfast.models import TwoBranchClassifier


class QueueLosses(nn.Module):
    """Computes both losses; queries and patches attend to the queue in one kernel launch."""

    def __init__(self, contrast: "DSCLLoss", distillation: "PBSDLoss", queue: "MemoryQueue") -> None:
        super().__init__()
        self.contrast, self.distillation, self.queue = contrast, distillation, queue

    def forward(
        self, query: Tensor, key: Tensor, labels: Tensor, pooled: Tensor | None = None, cropped: Tensor | None = None
    ) -> Tensor:
        """The contrastive loss, (1,); or with patches (B, L, D), this loss and the distillation loss, (2,)."""
        if pooled is None or cropped is None:
            return self.contrast(query, key, labels, self.queue)[None]
        attended = self.queue.attend(
            query,
            pooled.detach().flatten(0, 1),
            cropped.flatten(0, 1),
            temperature=self.contrast.temperature,
        )
        contrast = self.contrast(query, key, labels, self.queue, attended[0])
        distillation = self.distillation(pooled, cropped, key, self.queue, (attended[1], attended[2]))
        return torch.stack([contrast, distillation])


class ContrastStage(Stage):
    """`contrast + pbsd_weight * distillation`; the batches are `((query, key, patches, boxes), labels)`."""

    evaluated = False

    def __init__(
        self,
        name: str,
        batches: Batches,
        optimisation: Optimisation,
        *,
        network: "TwoBranchClassifier",
        losses: QueueLosses,
        pbsd_weight: float,
        key_momentum: float,
    ) -> None:
        """
        Args:
            name, batches, optimisation: see `Stage`.
            network: its backbone and projection head are trained.
            losses: the losses and the queue.
            pbsd_weight: the weight of the distillation loss; 0 leaves it out.
            key_momentum: the share of the key encoder that is kept at each optimiser step.
        """
        from timm.utils.model_ema import ModelEmaV3

        super().__init__(name, batches, optimisation)
        self.network = network
        # the key encoder stays in training mode, so that BatchNorm's running statistics, which are copied, are not used
        self.key_network = ModelEmaV3(network, decay=key_momentum, exclude_buffers=True)
        self.queue_losses = losses
        self.pbsd_weight = pbsd_weight

    def trained(self) -> Iterable[nn.Parameter]:
        yield from self.network.backbone.parameters()
        yield from self.network.projection.parameters()

    def replicated(self) -> Iterable[Tensor]:
        return self.queue_losses.buffers()

    def train(self, mode: bool = True) -> "ContrastStage":
        super().train(mode)
        self.key_network.train(mode)
        return self

    def start(self) -> None:
        super().start()
        self.key_network.set(self.network)

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        from ltfast.models import feature_map

        (query_images, key_images, patches, boxes), labels = batch
        maps, features = feature_map(self.network.backbone, query_images)
        query = self.network.projection(features)
        with torch.no_grad():
            key = self.key_network.module.branches(key_images)[1]
        if self.pbsd_weight == 0:
            (contrast,) = self.queue_losses(query, key, labels)
            total, logged = contrast, {}
        else:
            images, number = patches.shape[:2]
            with torch.no_grad():  # the targets of the distillation
                scale = maps.shape[-1] / query_images.shape[-1]
                pooled = self.network.projection(self.pool_patches(maps, boxes, scale).flatten(0, 1))
            cropped = self.network.projection(self.network.backbone(patches.flatten(0, 1)))
            contrast, distillation = self.queue_losses(
                query, key, labels, pooled.unflatten(0, (images, number)), cropped.unflatten(0, (images, number))
            )
            total, logged = contrast + self.pbsd_weight * distillation, {"distillation": distillation}
        self.queue_losses.queue.enqueue(key, labels)
        return total, {"contrast": contrast, **logged}

    def pool_patches(self, maps: Tensor, boxes: Tensor, scale: float) -> Tensor:
        """Features (B, L, D) of patches, from feature maps (B, D, H, W) and boxes (B, L, 4) in pixels of the image.
        `scale` is the ratio of the map's size to the image's."""
        from ltfast.ops import patch_roi_pool

        return patch_roi_pool(maps, boxes, spatial_scale=scale)

    def after_step(self) -> None:
        self.key_network.update(self.network)

    def before_save(self) -> None:
        self.queue_losses.queue.collect()

    def losses(self) -> Sequence[nn.Module]:
        return [self.queue_losses]


class ClassifierStage(SupervisedStage):
    """Trains the linear classifier only."""

    epochs_setting = "classifier_epochs"

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
    from ltfast.losses import DSCLLoss, MemoryQueue, PBSDLoss
    from ltfast.methods.batches import evaluation_batches, train_batches, validation_batches
    from ltfast.methods.check_batch_norm import check_batch_norm
    from ltfast.methods.start import initial_weights
    from ltfast.models import TwoBranchClassifier

    settings = settings.chosen(bundle)
    chosen: Any = settings  # no type says that none of these is "auto"
    size = settings.size_for(bundle)
    enough = not settings.queue_sharded or chosen.queue_size >= context.world_size
    check(enough, "queue_size", f"at least {context.world_size}, one key per process", chosen.queue_size)
    network = TwoBranchClassifier(
        settings.backbone,
        bundle.num_classes,
        feature_dim=settings.feature_dim,
        hidden_dim=None,
        batch_norm=False,
        in_chans=bundle.channels,
        image_size=size,
        pretrained=settings.pretrained,
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
    contrast = ContrastStage(
        "contrast",
        contrast_batches,
        settings,
        network=network,
        losses=QueueLosses(
            DSCLLoss(temperature=settings.temperature, beta=settings.beta),
            PBSDLoss(temperature=settings.temperature),
            MemoryQueue(
                settings.feature_dim,
                chosen.queue_size,
                num_classes=bundle.num_classes,
                sharded=settings.queue_sharded,
            ),
        ),
        pbsd_weight=settings.pbsd_weight,
        key_momentum=settings.key_momentum,
    )
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
