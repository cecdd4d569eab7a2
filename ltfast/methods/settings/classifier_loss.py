"""The options of methods that train one classifier with a loss of their user's choice."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ltfast.engine import option
from ltfast.methods.settings.backbone import BackboneSettings

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ClassifierLossSettings(BackboneSettings):
    """The loss of a classifier, and the images that it gets.

    Raises:
        ValueError: a setting is out of its range.
    """

    loss: str = option("cross_entropy", "training loss")
    sampler: Literal["instance", "class_balanced", "square_root", "effective_number"] = option(
        "instance", "which images an epoch draws: each once, or by class"
    )

    def loss_takes(self) -> tuple[str, Collection[str]]:
        # the weights of balanced_bce are no weights of images, and those of the class-balanced losses are their own
        unweighted = self.loss in ("balanced_bce", "class_balanced", "class_balanced_focal")
        return self.loss, ("label_smoothing",) if unweighted else ("label_smoothing", "class_weights")

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
