from typing import Any

from torch import Tensor

from ltfast import losses
from ltfast.losses.device import follow


class ProCoLoss(losses.ProCoLoss):
    """Replaces ``ProCoLoss`` of ProCo's training script: a call updates the statistics and returns the logits.

    Args:
        contrast_dim: width D of the features.
        temperature: tau.
        num_classes: C.
    """

    def __init__(self, contrast_dim: int, temperature: float = 1.0, num_classes: int = 1000) -> None:
        super().__init__(num_classes, contrast_dim, temperature=temperature)

    def forward(
        self, features: Tensor, labels: Tensor | None = None, sup_logits: Any = None, args: Any = None
    ) -> Tensor:
        """Compute the logits (B, C). With labels, first add the batches of all processes to the statistics.

        ``sup_logits`` is ignored, as in the authors' code. ``args`` is ignored too: the authors' code reads
        ``world_size`` from it, this one asks ``torch.distributed``, which need not be initialised.
        """
        follow(self, features)
        if labels is not None:
            self.update(features.detach(), labels)
        return self.logits(features)

    def _hook_before_epoch(self, epoch: int, epochs: int) -> None:
        self.start_epoch()

    def reload_memory(self) -> None:
        """Do nothing: the statistics are buffers, and move with the module."""
