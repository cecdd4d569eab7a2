"""The options of `--method ce`."""

from dataclasses import dataclass
from typing import Literal

from ltfast.engine import check, option
from ltfast.methods.settings.classifier_loss import ClassifierLossSettings


@dataclass(frozen=True, kw_only=True)
class Settings(ClassifierLossSettings):
    """Options of `--method ce`.

    Raises:
        ValueError: a setting is out of its range.
    """

    loss: Literal[
        "cross_entropy",
        "logit_adjusted",
        "balanced_softmax",
        "balanced_bce",
        "agcl",
        "ldam",
        "gcl",
        "focal",
        "class_balanced",
        "class_balanced_focal",
        "vs",
        "lade",
        "seesaw",
    ] = option("cross_entropy", "training loss; agcl, ldam and gcl bring a cosine classifier, the others a linear one")
    defer_reweighting: int | None = option(
        None,
        "number of epochs without --class-weights at the start (deferred re-weighting); none weights all epochs",
    )
    augment: Literal["none", "basic", "cifar", "cifar_autoaugment", "simclr", "imagenet", "randaugment"] = option(
        "basic", "augmentation of training images; basic is a shifted crop, cifar flips too"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        first = self.defer_reweighting
        check(first is None or 0 < first < self.epochs, "defer_reweighting", f"1 to {self.epochs - 1} epochs", first)
        weighted = first is None or self.class_weights is not None
        check(weighted, "defer_reweighting", "none without --class-weights", first)
