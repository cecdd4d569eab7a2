"""The options of `--method proco`."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ltfast.engine import check, option
from ltfast.methods.settings.backbone import BackboneSettings

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Settings(BackboneSettings):
    """Options of `--method proco`.

    Raises:
        ValueError: a setting is out of its range.
    """

    classifier: Literal["linear", "cosine"] = option(
        "linear", "the classifier; cosine, scaled by 30, is the authors' choice for large images"
    )
    augment: Literal["none", "basic", "cifar", "cifar_autoaugment", "simclr", "imagenet", "randaugment"] = option(
        "cifar_autoaugment", "augmentation of the classifier's view of training images; for digits and letters, basic"
    )
    contrast_augment: Literal["none", "basic", "cifar", "cifar_autoaugment", "simclr", "imagenet", "randaugment"] = (
        option("simclr", "augmentation of the two contrastive views; for digits and letters, basic")
    )
    contrast_weight: float = option(1.0, "weight of the contrastive loss; the classifier's is 1")
    temperature: float = option(0.1, "temperature of the contrastive loss")
    feature_dim: int = option(128, "width of the projection head's output")
    hidden_dim: int = option(512, "width of the projection head's hidden layer")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.contrast_weight >= 0, "contrast_weight", "at least 0", self.contrast_weight)
        check(self.temperature > 0, "temperature", "a positive number", self.temperature)
        check(self.feature_dim >= 2, "feature_dim", "at least 2", self.feature_dim)
        check(self.hidden_dim >= 1, "hidden_dim", "at least 1", self.hidden_dim)

    def loss_takes(self) -> tuple[str, Collection[str]]:
        return "logit_adjusted", ("label_smoothing", "class_weights")

    def score_distribution(self, class_counts: Sequence[int]) -> "Tensor | None":
        import torch

        # the loss adds the log-prior of the training set
        return self._weighted(torch.ones(len(class_counts), dtype=torch.float64), class_counts)
