"""A whole training step, and who does it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

FEATURE_DIM = 128  # of projections


@dataclass(frozen=True)
class Size:
    """What a step is of.

    Attributes:
        backbone: timm's name.
        images: of a batch, an even number; ProCo has three views of each, DSCL two and patches.
        pixels: height and width of an image.
        classes: of the data.
        imbalance: the largest class's images for one of the smallest's.
        queue: keys in DSCL's, a multiple of the batch.
        patch_pixels: height and width of DSCL's patches.
    """

    backbone: str
    images: int
    pixels: int = 224
    classes: int = 1000
    imbalance: float = 256.0
    queue: int = 65536
    patch_pixels: int = 64

    def class_counts(self) -> Tensor:
        return (1280 * self.imbalance ** -torch.linspace(0, 1, self.classes)).round()

    def draw_images(self, number: int, device: torch.device) -> Tensor:
        return torch.randn(number, 3, self.pixels, self.pixels, device=device)

    def draw_labels(self, device: torch.device) -> Tensor:
        """Of a batch, as often as the classes have images."""
        return self.class_counts().multinomial(self.images, replacement=True).to(device)


@dataclass(frozen=True)
class Implementation:
    """Who does a step.

    Attributes:
        forward: inputs -> what the loss takes of the networks.
        loss: of that and the target; it moves statistics and the queue on.
    """

    forward: Callable[..., Sequence[Tensor]]
    loss: Callable[..., Tensor]


@dataclass(frozen=True)
class StepPair:
    """A step of the same networks, with the same optimiser, on the same batch, by two implementations.

    Attributes:
        optimizer: of what is trained.
        inputs: images, and the patches' boxes.
        target: labels, or shares of the classes.
        implementations: `ltfast` and `published`.
    """

    optimizer: Optimizer
    inputs: Sequence[Tensor]
    target: Tensor
    implementations: Mapping[str, Implementation]

    def outputs(self, name: str) -> Sequence[Tensor]:
        """What the loss takes of the networks."""
        with self._autocast():
            return self.implementations[name].forward(*self.inputs)

    def loss(self, name: str, outputs: Sequence[Tensor]) -> Tensor:
        with self._autocast():
            return self.implementations[name].loss(*outputs, self.target)

    def step(self, name: str, _: object = None) -> None:
        self.loss(name, self.outputs(name)).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def loss_alone(self, name: str, outputs: Sequence[Tensor]) -> None:
        """Forward and backward, of outputs that are leaves."""
        self.loss(name, outputs).backward()
        for output in outputs:
            output.grad = None

    def _autocast(self) -> torch.autocast:
        device = self.target.device.type
        return torch.autocast(device, torch.bfloat16, enabled=device == "cuda")


def unit(rows: int, device: torch.device) -> Tensor:
    """Random projections."""
    return F.normalize(torch.randn(rows, FEATURE_DIM, device=device))
