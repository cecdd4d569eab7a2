"""The options of `--method ce`."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ltfast.engine import check, option
from ltfast.methods.settings.backbone import BackboneSettings

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Settings(BackboneSettings):
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
    sampler: Literal["instance", "class_balanced", "square_root", "effective_number"] = option(
        "instance", "which images an epoch draws: each once, or by class"
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

    def loss_takes(self) -> tuple[str, Collection[str]]:
        takes: dict[str, Collection[str]] = {
            "agcl": ("label_smoothing",),
            "balanced_bce": ("label_smoothing",),
            "class_balanced": ("label_smoothing",),
            "class_balanced_focal": ("label_smoothing",),
            "gcl": (),
            "ldam": ("class_weights",),
        }
        return self.loss, takes.get(self.loss, ("label_smoothing", "class_weights"))

    def score_distribution(self, class_counts: Sequence[int]) -> "Tensor | None":
        import torch

        from ltfast.data import effective_number_probabilities, square_root_probabilities

        counts = torch.tensor(class_counts, dtype=torch.float64)
        drawn = {
            "instance": counts,
            "class_balanced": torch.ones_like(counts),
            "square_root": square_root_probabilities(class_counts),
            "effective_number": effective_number_probabilities(class_counts),
        }[self.sampler]
        drawn = self._weighted(drawn, class_counts)
        if self.loss in ("logit_adjusted", "balanced_softmax", "balanced_bce", "lade"):
            return drawn / counts  # the loss adds the log-prior of the training set
        if self.loss == "class_balanced":
            return drawn * effective_number_probabilities(class_counts) / counts
        return drawn if self.loss == "cross_entropy" else None
