"""A stage that trains a network on labelled images."""

from collections.abc import Sequence

from torch import Tensor, nn

from ltfast.engine import Batches, Optimisation, Stage


class SupervisedStage(Stage):
    """Trains a network with `loss(network(images), labels)`."""

    def __init__(
        self, name: str, batches: Batches, optimisation: Optimisation, *, network: nn.Module, loss: nn.Module
    ) -> None:
        super().__init__(name, batches, optimisation)
        self.network = network
        self.loss = loss

    def forward(self, batch: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        images, labels = batch
        return self.loss(self.network(images), labels), {}

    def predict(self, *views: Tensor) -> Tensor:
        (images,) = views
        return self.network(images)

    def losses(self) -> Sequence[nn.Module]:
        return [self.loss]
