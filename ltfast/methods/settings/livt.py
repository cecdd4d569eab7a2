"""The options of `--method livt`."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from ltfast.engine import Optimisation, check, option
from ltfast.methods.settings.backbone import BackboneSettings, unless_auto

if TYPE_CHECKING:
    from torch import Tensor

    from ltfast.data import DataBundle


@dataclass(frozen=True, kw_only=True)
class Settings(BackboneSettings):
    """Options of `--method livt`. Options without a prefix belong to the fine-tuning.

    Raises:
        ValueError: a setting is out of its range.
    """

    epochs: int = option(100, "passes over the training images")
    optimizer: str = option("adamw", "any optimiser timm knows; the pre-training's is adamw")
    lr: float = option(1e-3, "peak learning rate of the head, as it is; the authors': 1e-3 * images a step / 256")
    weight_decay: float = option(0.05, "weight decay, of the pre-training too; not of biases, norms and tokens")
    warmup_epochs: int = option(5, "epochs in which the learning rate rises linearly from 0")
    backbone: str = option(
        "auto", "any plain vision transformer of timm's; auto: vit_digits up to 16 pixels, vit_tiny_cifar up to 64, "
        "vit_base_patch16_224 above"
    )  # fmt: skip
    init: str | None = option(
        None,
        "folder or checkpoint of a run: start from its vision transformer; from a LiVT run, from the encoder it has "
        "pre-trained",
    )
    loss: Literal["balanced_bce", "bce", "cross_entropy"] = option("balanced_bce", "training loss")
    tau: float = option(1.0, "strength of the class prior in balanced_bce")
    label_smoothing: float | Literal["auto"] = option(
        0.1, "share of a target that is spread over all classes; auto: 0.1"
    )
    mixup: float = option(0.8, "MixUp's alpha; 0 leaves it out")
    cutmix: float = option(1.0, "CutMix's alpha; 0 leaves it out; with both, a batch gets one of them")
    drop_path: float = option(0.1, "stochastic depth: the last block's chance of being left out")
    layer_decay: float = option(0.75, "factor of the learning rate from a block to the one before it; 1: all alike")
    augment: Literal["auto", "basic", "cifar", "imagenet", "randaugment"] = option(
        "auto", "augmentation of training images; auto: basic up to 16 pixels, cifar up to 64, randaugment above"
    )
    pretrain_epochs: int = option(400, "epochs of the masked pre-training; 0 leaves it out")
    pretrain_batch_size: int = option(64, "its images a batch and process")
    pretrain_lr: float = option(1.5e-4, "its peak learning rate, as it is; the authors': 1.5e-4 * images a step / 256")
    pretrain_warmup_epochs: int | Literal["auto"] = option("auto", "epochs in which it rises; auto: a tenth of them")
    pretrain_augment: Literal["auto", "basic", "cifar", "mae"] = option(
        "auto", "its augmentation; auto: basic up to 16 pixels, cifar up to 64, mae (crop and flip) above"
    )
    mask_ratio: float = option(0.75, "share of the patches that the encoder does not see")
    norm_pixels: bool = option(True, "predict each patch's pixels normalised")
    decoder_dim: int = option(512, "width of the pre-training's decoder")
    decoder_depth: int = option(8, "its blocks")
    decoder_heads: int = option(16, "its attention heads")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.tau >= 0, "tau", "at least 0", self.tau)
        check(self.mixup >= 0, "mixup", "at least 0", self.mixup)
        check(self.cutmix >= 0, "cutmix", "at least 0", self.cutmix)
        even = self.batch_size % 2 == 0 or not self.mixes
        check(even, "batch_size", "an even number (MixUp and CutMix pair images)", self.batch_size)
        check(0 <= self.drop_path < 1, "drop_path", "a number in [0, 1)", self.drop_path)
        check(0 < self.layer_decay <= 1, "layer_decay", "a number in (0, 1]", self.layer_decay)
        epochs, warmup = self.pretrain_epochs, self.pretrain_warmup_epochs
        check(epochs >= 0, "pretrain_epochs", "at least 0", epochs)
        check(self.pretrain_batch_size >= 1, "pretrain_batch_size", "at least 1", self.pretrain_batch_size)
        check(self.pretrain_lr > 0, "pretrain_lr", "a positive number", self.pretrain_lr)
        rises = warmup == "auto" or 0 <= warmup <= epochs
        check(rises, "pretrain_warmup_epochs", f"0 to {epochs}, the epochs of pre-training, or auto", warmup)
        check(0 < self.mask_ratio < 1, "mask_ratio", "a number in (0, 1)", self.mask_ratio)

    @property
    def mixes(self) -> bool:
        """Whether images are mixed."""
        return self.mixup > 0 or self.cutmix > 0

    def chosen(self, bundle: "DataBundle") -> "Settings":
        from ltfast.models import default_vit

        size = self.size_for(bundle)
        small, medium = size <= 16, size <= 64  # digits and letters: no flips
        return replace(
            self,
            image_size=size,
            backbone=unless_auto(self.backbone, default_vit(size)),
            augment=unless_auto(self.augment, "basic" if small else "cifar" if medium else "randaugment"),
            pretrain_warmup_epochs=unless_auto(self.pretrain_warmup_epochs, self.pretrain_epochs // 10),
            pretrain_augment=unless_auto(self.pretrain_augment, "basic" if small else "cifar" if medium else "mae"),
        )

    def of_pretraining(self) -> Optimisation:
        """The optimisation of the first stage."""
        return Optimisation(
            epochs=self.pretrain_epochs,
            batch_size=self.pretrain_batch_size,
            optimizer="adamw",
            lr=self.pretrain_lr,
            weight_decay=self.weight_decay,
            warmup_epochs=unless_auto(self.pretrain_warmup_epochs, self.pretrain_epochs // 10),
        )

    def loss_takes(self) -> tuple[str, Collection[str]]:
        return self.loss, ("label_smoothing", "class_weights") if self.loss == "cross_entropy" else ("label_smoothing",)

    def score_distribution(self, class_counts: Sequence[int]) -> "Tensor | None":
        import torch

        counts = torch.tensor(class_counts, dtype=torch.float64)
        # balanced_bce adds tau times the log-prior
        return counts ** (1 - self.tau) if self.loss == "balanced_bce" else self._weighted(counts, class_counts)
