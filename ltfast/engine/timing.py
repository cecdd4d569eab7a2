"""The time a run's losses take, alone."""

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ltfast.engine.stage import Stage


def loss_milliseconds(stage: Stage, batch: Any, accelerator: Accelerator) -> float | None:
    """Forward and backward of the stage's loss modules alone, in milliseconds a step.

    The batch goes through the stage once, to catch what its losses are called with; then they are called with that
    again, detached from the networks. The fastest of many blocks of calls counts: other programs only ever add time.

    Args:
        stage: unwrapped; put into training mode. Its networks' running statistics move by one step.
        batch: a training batch on the accelerator's device.
        accelerator: the device and the precision.

    Returns:
        None if no loss is called with anything to differentiate.

    Raises:
        Exception: whatever a loss raises that cannot be called alone.
    """
    calls: list[tuple[nn.Module, tuple[Any, ...], dict[str, Any]]] = []

    def catch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append((module, tuple(map(_leaf, args)), {key: _leaf(value) for key, value in kwargs.items()}))

    stage.train()
    handles = [loss.register_forward_pre_hook(catch, with_kwargs=True) for loss in stage.losses()]
    try:
        with accelerator.autocast():
            stage.forward(stage.prepare(batch))  # itself, not what it was compiled to
    finally:
        for handle in handles:
            handle.remove()

    from torch.utils.benchmark import Timer  # half a second to import

    leaves = [
        [x for x in (*args, *kwargs.values(), *loss.parameters()) if isinstance(x, Tensor) and x.requires_grad]
        for loss, args, kwargs in calls
    ]
    if not any(leaves):
        return None

    def step() -> None:
        for (loss, args, kwargs), inputs in zip(calls, leaves, strict=True):
            if inputs:
                with accelerator.autocast():
                    value = loss(*args, **kwargs)
                torch.autograd.grad(value, inputs, torch.ones_like(value), allow_unused=True)

    timer = Timer("step()", globals={"step": step}, num_threads=torch.get_num_threads())
    return 1e3 * min(timer.blocked_autorange(min_run_time=0.3).times)


def _leaf(value: Any) -> Any:
    return value.detach().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value
