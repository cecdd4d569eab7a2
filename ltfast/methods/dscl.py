"""DSCL: Xuan and Zhang, "Decoupled Contrastive Learning for Long-Tailed Recognition", AAAI 2024.

Two stages. The backbone learns by the decoupled contrastive loss between a query view and a momentum encoder's keys of
this batch and of a long queue; patches of the query view, cropped out, learn to be as similar to every key as the same
patches pooled from the query's feature map. Then a linear classifier learns on the frozen backbone, with batches that
are balanced over the classes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from ltfast.engine import Batches, Optimisation, Plan, RunSettings, Stage, check, option
from ltfast.methods.ce import SupervisedStage
from ltfast.methods.settings import BackboneSettings

if TYPE_CHECKING:
    from ltfast.data import DataBundle
    from ltfast.losses import DSCLLoss, MemoryQueue, PBSDLoss
    from ltfast.models import TwoBranchClassifier


@dataclass(frozen=True, kw_only=True)
class Settings(BackboneSettings):
    """Options of `--method dscl`; those without a prefix are the contrastive stage's.

    Raises:
        ValueError: a setting out of its range.
    """

    augment: Literal["basic", "cifar", "dscl"] | None = option(
        None,
        "of query, key and patches: dscl, the authors'; basic, shifted crops; cifar, flips too; none: by image size",
    )
    temperature: float = option(0.07, "temperature of both losses")
    beta: float = option(8.0, "weight of the other positives together, where an image's own key has 1")
    queue_size: int | None = option(None, "keys in the memory queue; none: 65536, or the number of training images")
    queue_sharded: bool = option(False, "under several processes, each holds a share of the queue, not all of it")
    key_momentum: float = option(0.999, "share of the key encoder that stays at each optimiser step")
    feature_dim: int = option(128, "width of the projection head's output")
    pbsd_weight: float = option(1.5, "weight of the patches' self-distillation; 0 leaves it and the patches out")
    patches: int = option(5, "patches of an image")
    patch_size: int | None = option(
        None, "pixels of height and width of a patch; none: 64, or half the image's size below 128 pixels"
    )
    patch_scale: tuple[float, float] = option((0.05, 0.6), "least and greatest area of a patch, of the query view's")
    classifier_epochs: int = option(40, "epochs of the classifier's stage")
    classifier_lr: float | None = option(
        None,
        "its learning rate, a tenth of it from half of the epochs on, and again from 3/4; none: 10 for 2048 images "
        "an optimiser step",
    )
    classifier_batch_size: int = option(2048, "its images a batch and process, or as many as there are")
    classifier_augment: Literal["none", "basic", "cifar", "imagenet"] | None = option(
        None, "its augmentation; none: by image size"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.temperature > 0, "temperature", "a positive number", self.temperature)
        check(self.beta >= 0, "beta", "at least 0", self.beta)
        check(self.queue_size is None or self.queue_size >= 1, "queue_size", "at least 1, or none", self.queue_size)
        check(0 <= self.key_momentum < 1, "key_momentum", "a number in [0, 1)", self.key_momentum)
        check(self.feature_dim >= 1, "feature_dim", "at least 1", self.feature_dim)
        check(self.pbsd_weight >= 0, "pbsd_weight", "at least 0", self.pbsd_weight)
        check(self.patches >= 1, "patches", "at least 1 (--pbsd-weight 0 leaves them out)", self.patches)
        check(self.patch_size is None or self.patch_size >= 1, "patch_size", "at least 1 pixel", self.patch_size)
        rising = 0 < self.patch_scale[0] <= self.patch_scale[1] <= 1
        check(rising, "patch_scale", "two rising shares in (0, 1]", self.patch_scale)
        positive = self.classifier_lr is None or self.classifier_lr > 0
        check(positive, "classifier_lr", "a positive number, or none", self.classifier_lr)
        check(self.classifier_epochs >= 1, "classifier_epochs", "at least 1", self.classifier_epochs)
        check(self.classifier_batch_size >= 1, "classifier_batch_size", "at least 1", self.classifier_batch_size)

    def of_classifier(self, batch_size: int, images: int) -> Optimisation:
        """How the second stage is optimised, with batches of this size, and so many images an optimiser step."""
        milestones = sorted({self.classifier_epochs // 2, self.classifier_epochs * 3 // 4} - {0})
        return Optimisation(
            epochs=self.classifier_epochs,
            batch_size=batch_size,
            optimizer="momentum",
            lr=10 * images / 2048 if self.classifier_lr is None else self.classifier_lr,
            weight_decay=0.0,
            schedule="multistep" if milestones else "constant",
            milestones=tuple(milestones),
        )


class QueueLosses(nn.Module):
    """Both losses; queries and patches go through the queue in one launch."""

    def __init__(self, contrast: "DSCLLoss", distillation: "PBSDLoss", queue: "MemoryQueue") -> None:
        super().__init__()
        self.contrast, self.distillation, self.queue = contrast, distillation, queue

    def forward(
        self, query: Tensor, key: Tensor, labels: Tensor, pooled: Tensor | None = None, cropped: Tensor | None = None
    ) -> Tensor:
        """The contrastive loss and, given the patches (B, L, D), the distillation's: (1,) or (2,)."""
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
            losses: with the queue.
            pbsd_weight: of the distillation; 0 leaves it out.
            key_momentum: share of the key encoder that stays at each optimiser step.
        """
        from timm.utils.model_ema import ModelEmaV3

        super().__init__(name, batches, optimisation)
        self.network = network
        # BatchNorm's running statistics, which are copied, are not used: the key encoder stays in training mode
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
        self.key_network.set(self.network)

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        from ltfast.models import feature_map
        from ltfast.ops import patch_roi_pool

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
            with torch.no_grad():  # what the patches learn from
                scale = maps.shape[-1] / query_images.shape[-1]
                pooled = self.network.projection(patch_roi_pool(maps, boxes, spatial_scale=scale).flatten(0, 1))
            cropped = self.network.projection(self.network.backbone(patches.flatten(0, 1)))
            contrast, distillation = self.queue_losses(
                query, key, labels, pooled.unflatten(0, (images, number)), cropped.unflatten(0, (images, number))
            )
            total, logged = contrast + self.pbsd_weight * distillation, {"distillation": distillation}
        self.queue_losses.queue.enqueue(key, labels)
        return total, {"contrast": contrast, **logged}

    def after_step(self) -> None:
        self.key_network.update(self.network)

    def before_save(self) -> None:
        self.queue_losses.queue.collect()

    def losses(self) -> Sequence[nn.Module]:
        return [self.queue_losses]


class ClassifierStage(SupervisedStage):
    """The linear classifier alone."""

    def trained(self) -> Iterable[nn.Parameter]:
        return self.network.head.parameters()  # type: ignore[union-attr]

    def losses(self) -> Sequence[nn.Module]:
        return []  # the first stage's are the method's


def build(
    settings: Settings,
    bundle: "DataBundle",
    *,
    run: RunSettings,
    rank: int = 0,
    world_size: int = 1,
    test_batch_size: int = 256,
) -> Plan:
    """Both stages. Their initial weights come from torch's global generator.

    Raises:
        ValueError: a setting that does not fit the data or the backbone.
    """
    # seconds to import, and --help needs none of it
    from ltfast.data import PatchViews, train_transform
    from ltfast.losses import DSCLLoss, MemoryQueue, PBSDLoss
    from ltfast.methods.batches import evaluation_batches, train_batches
    from ltfast.models import TwoBranchClassifier, default_backbone

    size = settings.size_for(bundle)
    backbone = default_backbone(size) if settings.backbone is None else settings.backbone
    network = TwoBranchClassifier(
        backbone,
        bundle.num_classes,
        feature_dim=settings.feature_dim,
        hidden_dim=None,
        batch_norm=False,
        in_chans=bundle.channels,
        image_size=size,
        pretrained=settings.pretrained,
    )
    small = size <= 16  # digits and letters: no flips, no colours
    patch_size = settings.patch_size or (64 if size >= 128 else min(max(size // 2, 8), size))
    with_patches = settings.pbsd_weight > 0
    if with_patches:
        _check_patches(network, backbone, size, patch_size, bundle.channels)
    views = PatchViews(
        bundle,
        settings.augment or ("basic" if small else "dscl"),
        size,
        patches=settings.patches if with_patches else 0,
        patch_size=patch_size,
        scale=settings.patch_scale,
    )
    shared: dict[str, Any] = {"run": run, "rank": rank, "world_size": world_size}
    contrast_batches = train_batches(bundle, [views], batch_size=settings.batch_size, **shared)
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
                settings.queue_size or min(65536, len(bundle.train)),
                num_classes=bundle.num_classes,
                sharded=settings.queue_sharded,
            ),
        ),
        pbsd_weight=settings.pbsd_weight,
        key_momentum=settings.key_momentum,
    )
    batch_size = min(settings.classifier_batch_size, max(len(bundle.train) // world_size, 1))
    policy = settings.classifier_augment or ("basic" if small else "cifar" if size <= 64 else "imagenet")
    classifier_batches = train_batches(
        bundle,
        [train_transform(bundle, policy, size)],
        batch_size=batch_size,
        sampler="class_balanced",
        start_draw=contrast_batches.batches.draws_per_epoch * settings.epochs,
        **shared,
    )
    images = batch_size * world_size * min(run.accumulate, len(classifier_batches))
    classifier = ClassifierStage(
        "classifier",
        classifier_batches,
        settings.of_classifier(batch_size, images),
        network=network,
        loss=nn.CrossEntropyLoss(),
    )
    test = evaluation_batches(bundle, size, batch_size=test_batch_size, **shared)
    return Plan([contrast, classifier], test)


def _check_patches(network: nn.Module, backbone: str, size: int, patch_size: int, channels: int) -> None:
    """Whether the backbone takes patches of this size, and its map's channels are its features'.

    Raises:
        ValueError: they do not.
    """
    from ltfast.models import feature_map

    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            maps, features = feature_map(network.backbone, torch.zeros(1, channels, size, size))
            feature_map(network.backbone, torch.zeros(1, channels, patch_size, patch_size))
    except Exception as error:  # timm's models raise what they please
        raise ValueError(
            f"patch_size: expected a size that {backbone} takes (the image's, {size}, is one), "
            f"got {patch_size}: {error}"
        ) from error
    finally:
        network.train(was_training)
    if maps.shape[1] != features.shape[1]:
        raise ValueError(
            f"backbone: expected one whose feature map is as wide as its features ({features.shape[1]}), for patches "
            f"to be pooled from it, got {backbone} ({maps.shape[1]}); --pbsd-weight 0 does without patches"
        )
