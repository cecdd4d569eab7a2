"""A pair of stages to time: a method's own, and one that shares its networks and computes the losses as published."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from ltfast.benchmark.steps.noise import noise_bundle
from ltfast.benchmark.steps.size import Size
from ltfast.engine import RunSettings, Stage
from ltfast.engine.stage import freeze_untrained
from ltfast.methods import METHODS, BuildContext, settings_of

LR = 1e-3  # low enough that weights stay finite; nothing can be learned from noise


class PublishedLoss(nn.Module):
    """A loss module that calls a function."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


@dataclass(frozen=True)
class StepPair:
    """Two stages that train the same networks, with the same optimiser, on the same batch.

    Attributes:
        stages: `ltfast`, the method's own stage, and `published`, a stage of the same class with the authors' losses.
        batch: a batch of the method's data loading, on the device.
        optimizer: the method's optimiser.
    """

    stages: dict[str, Stage]
    batch: Any
    optimizer: Optimizer

    def loss(self, name: str) -> Tensor:
        """The loss of the whole step."""
        stage = self.stages[name]
        batch = stage.prepare(self.batch)
        with self.autocast():
            loss, _ = stage(batch)
        return loss

    def step(self, name: str, _: object = None) -> None:
        """One training step, as the engine makes it."""
        stage = self.stages[name]
        self.loss(name).backward()
        stage.after_backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        stage.after_step()

    def autocast(self) -> AbstractContextManager[Any]:
        device = next(self.stages["ltfast"].parameters()).device.type
        return torch.autocast(device, torch.bfloat16, enabled=device == "cuda")


def own_stage(method: str, name: str, size: Size, device: torch.device, **values: Any) -> Stage:
    """A stage that the method's own code builds and starts.

    Args:
        method: a name from `METHODS`.
        name: the name of the stage.
        size: the size of the step.
        device: the device to measure.
        values: further settings of the method.
    """
    settings = settings_of(
        method,
        {"backbone": size.backbone, "image_size": size.pixels, "batch_size": size.images, "lr": LR, **values},
    )
    run = RunSettings(fused_classifier="off")  # the published losses take class scores
    plan = METHODS[method].build(settings, noise_bundle(size), BuildContext(run))
    (stage,) = (stage for stage in plan.stages if stage.name == name)
    freeze_untrained(stage)
    stage.to(device).start()
    return stage


def make_pair(stage: Stage, published: Stage, device: torch.device) -> StepPair:
    """Make a pair of stages, which are put into training mode, with the first batch of `stage`."""
    batch = send_to_device(next(stage.batches.epoch(0, 0)), device)
    stage.train()
    return StepPair({"ltfast": stage, "published": published.to(device).train()}, batch, stage.optimizer())


def unit(rows: int, width: int, device: torch.device) -> Tensor:
    """Random projections, (rows, width) of length 1."""
    return F.normalize(torch.randn(rows, width, device=device))
