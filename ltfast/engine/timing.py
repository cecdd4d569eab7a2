"""The time that the losses of a run take."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import find_batch_size, send_to_device
from torch import Tensor, nn

from ltfast.engine.seeding import seed_everything
from ltfast.engine.stage import Stage, freeze_untrained


@dataclass(frozen=True)
class LossTime:
    """Times of one training step: forward and backward pass, without the optimiser and the loading of images."""

    loss_ms: float  # of the loss modules alone
    step_ms: float  # of the networks and the losses
    step_images: int


def time_last_losses(
    stages: Sequence[Stage], accelerator: Accelerator, *, seed: Sequence[int], say: Callable[[str], None]
) -> dict[str, float | None]:
    """The times of the last stage that has losses, on its first batch.

    Args:
        stages: a trained plan's.
        accelerator: the device and the precision.
        seed: for `seed_everything`, before the losses are called.
        say: is given the reason why the losses cannot be timed.

    Returns:
        The fields of a `LossTime`. They are None if the losses cannot be timed or there are none; under several
        processes too: a loss may exchange values with the others, which have no part in this.
    """
    times = None
    try:
        timed = [stage for stage in stages if stage.losses()]
        if timed and accelerator.num_processes == 1:
            stage = timed[-1]
            freeze_untrained(stage)
            stage.to(accelerator.device)
            batch = send_to_device(next(stage.batches.epoch(0, 0)), accelerator.device)
            stage.batches.close()
            seed_everything(*seed)
            times = time_losses(stage, batch, accelerator)
    except Exception as error:  # a method's own code; the trained run deserves its report
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        say(f"the loss was not timed: {reason}")
    return dict.fromkeys(field.name for field in fields(LossTime)) if times is None else asdict(times)


def time_losses(stage: Stage, batch: Any, accelerator: Accelerator) -> LossTime | None:
    """Time a stage's loss modules, and the whole step.

    The batch goes through the stage once, to time the step and to catch the arguments of its losses. The losses are
    then called with these arguments again, detached from the networks. Their time is the minimum over many blocks of
    calls, because other programs only add time; the step is timed once.

    Args:
        stage: unwrapped; put into training mode. The running statistics of its networks move by one step.
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
        _wait(accelerator)
        begun = time.perf_counter()
        with accelerator.autocast():
            total, _ = stage.forward(stage.prepare(batch))  # itself, not what it was compiled to
        trained = [parameter for parameter in stage.parameters() if parameter.requires_grad]
        if trained and total.requires_grad:
            torch.autograd.grad(total, trained, allow_unused=True)
        _wait(accelerator)
        step_seconds = time.perf_counter() - begun
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
    loss_seconds = min(timer.blocked_autorange(min_run_time=0.3).times)
    return LossTime(1e3 * loss_seconds, 1e3 * step_seconds, find_batch_size(batch))


def _wait(accelerator: Accelerator) -> None:
    if accelerator.device.type == "cuda":
        torch.cuda.synchronize(accelerator.device)


def _leaf(value: Any) -> Any:
    return value.detach().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value
