"""The options of `--method dscl`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from ltfast.engine import Optimisation, check, option
from ltfast.methods.settings.backbone import BackboneSettings, unless_auto

if TYPE_CHECKING:
    from torch import Tensor

    from ltfast.data import DataBundle


@dataclass(frozen=True, kw_only=True)
class Settings(BackboneSettings):
    """Options of `--method dscl`. Options without a prefix belong to the contrastive stage.

    Raises:
        ValueError: a setting is out of its range.
    """

    augment: Literal["auto", "basic", "cifar", "dscl"] = option(
        "auto",
        "of query, key and patches: dscl, the authors'; basic, shifted crops; cifar, flips too; auto: basic up to 16 "
        "pixels, dscl above",
    )
    temperature: float = option(0.07, "temperature of both losses")
    beta: float = option(8.0, "weight of the other positives together, where an image's own key has 1")
    queue_size: int | Literal["auto"] = option(
        "auto", "keys in the memory queue; auto: 65536, or the number of training images where it is less"
    )
    queue_sharded: bool = option(False, "under several processes, each holds a share of the queue, not all of it")
    key_momentum: float = option(0.999, "share of the key encoder that stays at each optimiser step")
    feature_dim: int = option(128, "width of the projection head's output")
    pbsd_weight: float = option(1.5, "weight of the patches' self-distillation; 0 leaves it and the patches out")
    patches: int = option(5, "patches of an image")
    patch_size: int | Literal["auto"] = option(
        "auto", "pixels of height and width of a patch; auto: 64, or half the image's size below 128 pixels"
    )
    patch_scale: tuple[float, float] = option((0.05, 0.6), "least and greatest area of a patch, of the query view's")
    classifier_epochs: int = option(40, "epochs of the classifier's stage")
    classifier_lr: float | Literal["auto"] = option(
        "auto",
        "its learning rate, a tenth of it from half of the epochs on, and again from 3/4; auto: 10 for 2048 images "
        "an optimiser step",
    )
    classifier_batch_size: int = option(2048, "its images a batch and process, or as many as there are")
    classifier_augment: Literal["auto", "none", "basic", "cifar", "imagenet"] = option(
        "auto", "its augmentation; auto: basic up to 16 pixels, cifar up to 64, imagenet above"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.temperature > 0, "temperature", "a positive number", self.temperature)
        check(self.beta >= 0, "beta", "at least 0", self.beta)
        check(self.queue_size == "auto" or self.queue_size >= 1, "queue_size", "at least 1, or auto", self.queue_size)
        check(0 <= self.key_momentum < 1, "key_momentum", "a number in [0, 1)", self.key_momentum)
        check(self.feature_dim >= 1, "feature_dim", "at least 1", self.feature_dim)
        check(self.pbsd_weight >= 0, "pbsd_weight", "at least 0", self.pbsd_weight)
        check(self.patches >= 1, "patches", "at least 1 (--pbsd-weight 0 leaves them out)", self.patches)
        patch = self.patch_size
        check(patch == "auto" or patch >= 1, "patch_size", "at least 1 pixel, or auto", patch)
        rising = 0 < self.patch_scale[0] <= self.patch_scale[1] <= 1
        check(rising, "patch_scale", "two rising shares in (0, 1]", self.patch_scale)
        positive = self.classifier_lr == "auto" or self.classifier_lr > 0
        check(positive, "classifier_lr", "a positive number, or auto", self.classifier_lr)
        check(self.classifier_epochs >= 1, "classifier_epochs", "at least 1", self.classifier_epochs)
        check(self.classifier_batch_size >= 1, "classifier_batch_size", "at least 1", self.classifier_batch_size)

    def chosen(self, bundle: "DataBundle") -> "Settings":
        size = self.size_for(bundle)
        small = size <= 16  # digits and letters: no flips, no colours
        return replace(
            super().chosen(bundle),
            augment=unless_auto(self.augment, "basic" if small else "dscl"),
            queue_size=unless_auto(self.queue_size, min(65536, len(bundle.train))),
            patch_size=unless_auto(self.patch_size, 64 if size >= 128 else min(max(size // 2, 8), size)),
            classifier_augment=unless_auto(
                self.classifier_augment, "basic" if small else "cifar" if size <= 64 else "imagenet"
            ),
        )

    def of_classifier(self, batch_size: int, images: int) -> Optimisation:
        """The optimisation of the second stage, with batches of this size and `images` images per optimiser step."""
        milestones = sorted({self.classifier_epochs // 2, self.classifier_epochs * 3 // 4} - {0})
        return Optimisation(
            epochs=self.classifier_epochs,
            batch_size=batch_size,
            optimizer="momentum",
            lr=unless_auto(self.classifier_lr, 10 * images / 2048),
            weight_decay=0.0,
            schedule="multistep" if milestones else "constant",
            milestones=tuple(milestones),
        )

    def score_distribution(self, class_counts: Sequence[int]) -> "Tensor | None":
        import torch

        # the classifier sees each class equally often
        return self._weighted(torch.ones(len(class_counts), dtype=torch.float64), class_counts)
