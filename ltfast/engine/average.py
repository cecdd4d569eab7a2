"""The moving average of the weights of a stage."""

from pathlib import Path
from typing import Any

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from ltfast.engine.checkpoint import check_content
from ltfast.engine.schema import like
from ltfast.engine.stage import Stage
from ltfast.ops.core.torch_internals import BatchNorm


class WeightAverage:
    """The exponential moving average of the parameters that a stage trains, and of the running statistics of its
    BatchNorm layers, which belong to the parameters. Other buffers (queues, estimators) are not averaged.

    The decay rises to its value in the first steps (timm's warm-up), so that the initial weights are soon forgotten:
    after the first step, the average is the weights.

    Args:
        stage: on the device of its training, with the parameters that it does not train frozen.
        decay: the share of the average that is kept at each optimiser step, above 0 and below 1.
    """

    def __init__(self, stage: Stage, decay: float) -> None:
        statistics = {
            f"{path}.{name}".lstrip("."): buffer
            for path, layer in stage.named_modules()
            if isinstance(layer, BatchNorm)
            for name, buffer in layer.named_buffers(recurse=False)
        }
        parameters = {name: value for name, value in stage.named_parameters() if value.requires_grad}
        self.names = [*parameters, *statistics]
        # a module with these tensors alone: a copy of the stage would have a copy of its images
        self.own = nn.Module()
        for i, parameter in enumerate(parameters.values()):
            self.own.register_parameter(f"parameter_{i}", parameter)
        for i, buffer in enumerate(statistics.values()):
            self.own.register_buffer(f"buffer_{i}", buffer)
        self.average = ModelEmaV3(self.own, decay=decay, use_warmup=True)

    def update(self, step: int) -> None:
        """Add the weights after an optimiser step of the stage to the average; `step` counts from 1."""
        self.average.update(self.own, step)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the weights of the stage and the average."""
        for value, mean in zip(self._values(self.own), self._values(self.average.module), strict=True):
            before = value.clone()
            value.copy_(mean)
            mean.copy_(before)

    def state_dict(self) -> dict[str, Tensor]:
        """The average, with the names of the stage's state dict."""
        return dict(zip(self.names, self._values(self.average.module), strict=True))

    def load_state_dict(self, path: Path, state: Any) -> None:
        """Load what `state_dict` returned, from the checkpoint at `path`.

        Raises:
            CheckpointError: the state does not belong to this stage.
        """
        own = self.state_dict()
        check_content(path, like(own), state, "average")
        for name, mean in own.items():
            mean.copy_(state[name])

    @staticmethod
    def _values(module: nn.Module) -> list[Tensor]:
        return list(module.state_dict().values())
