"""The time a run's losses take, alone."""

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from ltfast.engine.stage import Stage


def loss_milliseconds(stage: Stage, batch: Any, accelerator: Accelerator) -> float:
    """Forward and backward of the stage's loss modules alone, in milliseconds a step.

    The batch goes through the stage once, to catch what its losses are called with; then they are called with that
    again, detached from the networks. The fastest of many blocks of calls counts: other programs only ever add time.

    Args:
        stage: unwrapped; put into training mode. Its networks' running statistics move by one step.
        batch: a training batch on the accelerator's device.
        accelerator: the device and the precision.
    """
    calls: list[tuple[nn.Module, tuple[Any, ...], dict[str, Any]]] = []

    def catch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append((module, tuple(map(_leaf, args)), {key: _leaf(value) for key, value in kwargs.items()}))

    stage.train()
    handles = [loss.register_forward_pre_hook(catch, with_kwargs=True) for loss in stage.losses()]
    try:
        with accelerator.autocast():
            stage(batch)
    finally:
        for handle in handles:
            handle.remove()

    def step() -> None:
        for loss, args, kwargs in calls:
            with accelerator.autocast():
                value = loss(*args, **kwargs)
            leaves = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and a.requires_grad]
            torch.autograd.grad(value, leaves)

    timer = Timer("step()", globals={"step": step}, num_threads=torch.get_num_threads())
    return 1e3 * min(timer.blocked_autorange(min_run_time=0.3).times)


def _leaf(value: Any) -> Any:
    return value.detach().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value
