from typing import Any

from torch import Tensor

from ltfast import losses
from ltfast.compat.device import follow


class ProCoLoss(losses.ProCoLoss):
    """``ProCoLoss`` of ProCo's training script: a call updates the statistics and gives the logits.

    Args:
        contrast_dim: width of the features.
        temperature: tau.
        num_classes: C.
    """

    def __init__(self, contrast_dim: int, temperature: float = 1.0, num_classes: int = 1000) -> None:
        super().__init__(num_classes, contrast_dim, temperature=temperature)

    def forward(
        self, features: Tensor, labels: Tensor | None = None, sup_logits: Any = None, args: Any = None
    ) -> Tensor:
        """Logits (B, C); with labels, after the batches of all processes are added to the statistics.

        ``sup_logits`` does nothing, as in the authors' code; ``args``, whose ``world_size`` their code reads, neither:
        ``torch.distributed`` knows, and need not be initialised.
        """
        follow(self, features)
        if labels is not None:
            self.update(features.detach(), labels)
        return self.logits(features)

    def _hook_before_epoch(self, epoch: int, epochs: int) -> None:
        self.start_epoch()

    def reload_memory(self) -> None:
        """Nothing to do: the statistics move with the module."""
