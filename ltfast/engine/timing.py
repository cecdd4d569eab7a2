"""Times the losses of a run."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import find_batch_size, send_to_device

from ltfast.engine.loss_calls import caught_loss_calls
from ltfast.engine.seeding import seed_everything
from ltfast.engine.stage import Stage, freeze_untrained


@dataclass(frozen=True)
class LossTime:
    """Times of the forward and backward pass of a training step, without the optimiser and without the loading and
    augmentation of images."""

    loss_ms: float  # the loss modules alone
    step_ms: float  # the networks and the losses
    step_images: int


def time_last_losses(
    stages: Sequence[Stage], accelerator: Accelerator, *, seed: Sequence[int], say: Callable[[str], None]
) -> dict[str, float | None]:
    """Time the losses of the last stage that has any, on its first batch.

    Args:
        stages: the stages of a trained plan.
        accelerator: has the device and the precision.
        seed: the arguments of `seed_everything`, which is called before the step.
        say: called with the reason if the losses cannot be timed.

    Returns:
        The fields of a `LossTime`. They are None if there are no losses or they cannot be timed, and under several
        processes, because a loss may exchange values with the others, which do not take part.
    """
    times = None
    try:
        timed = [stage for stage in stages if stage.losses()]
        if timed and accelerator.num_processes == 1:
            stage = timed[-1]
            freeze_untrained(stage)
            stage.to(accelerator.device)
            batch = stage.batches.finish(send_to_device(next(stage.batches.epoch(0, 0)), accelerator.device))
            stage.batches.close()
            seed_everything(*seed)
            times = time_losses(stage, batch, accelerator)
    except Exception as error:  # a method's own code; the trained run deserves its report
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        say(f"the loss was not timed: {reason}")
    return dict.fromkeys(field.name for field in fields(LossTime)) if times is None else asdict(times)


def time_losses(stage: Stage, batch: Any, accelerator: Accelerator) -> LossTime | None:
    """Time a stage's loss modules, and the whole step.

    The batch passes through the stage once, to time the step and to collect the calls of its losses. The calls are then
    repeated without the networks. The time of the losses is the minimum over many blocks of repetitions, because other
    programs only add time; the step is timed once.

    Args:
        stage: an unwrapped stage. It is put into training mode, and its networks' running statistics move by one step.
        batch: a training batch on the accelerator's device.
        accelerator: the device and the precision.

    Returns:
        None if no call of a loss has an argument or parameter that requires a gradient.

    Raises:
        Exception: a loss cannot be called alone.
    """
    stage.train()
    with caught_loss_calls(stage) as calls:
        _wait(accelerator)
        begun = time.perf_counter()
        with accelerator.autocast():
            total, _ = stage.forward(stage.prepare(batch))  # itself, not what it was compiled to
        trained = [parameter for parameter in stage.parameters() if parameter.requires_grad]
        if trained and total.requires_grad:
            torch.autograd.grad(total, trained, allow_unused=True)
        _wait(accelerator)
        step_seconds = time.perf_counter() - begun

    from torch.utils.benchmark import Timer  # half a second to import

    calls = [call for call in calls if call.differentiable]
    if not calls:
        return None

    def repeat() -> None:
        for call in calls:
            call.repeat(accelerator.autocast)

    timer = Timer("repeat()", globals={"repeat": repeat}, num_threads=torch.get_num_threads())
    loss_seconds = min(timer.blocked_autorange(min_run_time=0.3).times)
    return LossTime(1e3 * loss_seconds, 1e3 * step_seconds, find_batch_size(batch))


def _wait(accelerator: Accelerator) -> None:
    if accelerator.device.type == "cuda":
        torch.cuda.synchronize(accelerator.device)
