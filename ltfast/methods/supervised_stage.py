"""A stage that trains a network on labelled images."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ltfast.engine import Batches, Optimisation, Stage
from ltfast.methods.fused_classifier import classifier_loss


class SupervisedStage(Stage):
    """Trains a network with `loss(network(images), labels)`."""

    network: Any  # nn.Module's attributes have no types

    def __init__(
        self, name: str, batches: Batches, optimisation: Optimisation, *, network: nn.Module, loss: nn.Module
    ) -> None:
        """
        Args:
            name, batches, optimisation: see `Stage`.
            network: maps images to class scores by `head(features(images))`.
            loss: from `fused_loss`.
        """
        super().__init__(name, batches, optimisation)
        self.network = network
        self.loss = loss

    def forward(self, batch: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        images, labels = batch
        return classifier_loss(self.loss, self.network.head, self.features(images), labels), {}

    def features(self, images: Tensor) -> Tensor:
        """The input (B, D) of the network's head."""
        return self.network.features(images)

    def predict(self, *views: Tensor) -> Tensor:
        (images,) = views
        return self.network(images)

    def losses(self) -> Sequence[nn.Module]:
        return [self.loss]
