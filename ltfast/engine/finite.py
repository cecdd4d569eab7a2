"""Checks that losses, gradients and weights stay finite."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

_LEAST_SCALE = 1e-4  # of fp16's losses; it begins at 65536, and is halved at each step whose gradient overflows


class TrainingError(RuntimeError):
    """Training cannot go on: a loss, a gradient or a weight is not finite."""


def is_finite(value: Tensor) -> bool:
    """Whether a tensor has no NaN and nothing infinite; waits for a GPU."""
    return not (value.is_floating_point() or value.is_complex()) or bool(value.isfinite().all())


def check_losses(losses: Sequence[float], where: str, first: int, checkpoint: Path) -> None:
    """Check the losses of consecutive steps.

    Args:
        losses: one of each step.
        where: the stage and epoch, in words.
        first: the number of the first step.
        checkpoint: the run's, which the message names.

    Raises:
        TrainingError: a loss is not finite.
    """
    for step, loss in enumerate(losses, first):
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} at {where}, step {step}; {_kept(checkpoint)}. A lower --lr often helps"
            )


def check_scale(scaler: Any | None, where: str, checkpoint: Path) -> None:
    """Check that fp16's gradients do not overflow at every scale of the loss.

    Args:
        scaler: `Accelerator.scaler`; None in another precision.
        where: the stage, epoch and step, in words.
        checkpoint: the run's, which the message names.

    Raises:
        TrainingError: the scale has fallen too low.
    """
    if scaler is not None and (scale := scaler.get_scale()) < _LEAST_SCALE:
        raise TrainingError(
            f"the gradient overflows at {where}, with the loss times {scale:.0e} too; "
            f"{_kept(checkpoint)}. A lower --lr often helps, or --precision bf16"
        )


def check_parameters(parameters: Iterable[Tensor], checkpoint: Path) -> None:
    """Check parameters before the checkpoint is replaced.

    Raises:
        TrainingError: one is not finite.
    """
    if not all(is_finite(parameter) for parameter in parameters):
        raise TrainingError(f"a weight is not finite; {_kept(checkpoint)}. A lower --lr often helps")


def check_state(state: Mapping[str, Tensor], checkpoint: Path) -> None:
    """Check a state dict before the checkpoint is replaced.

    Raises:
        TrainingError: a tensor is not finite; the message names it.
    """
    if bad := next((name for name, value in state.items() if not is_finite(value)), None):
        raise TrainingError(f"{bad} is not finite; {_kept(checkpoint)}. A lower --lr often helps")


def _kept(checkpoint: Path) -> str:
    return f"the last good checkpoint is {checkpoint}" if checkpoint.exists() else "there is no checkpoint yet"
