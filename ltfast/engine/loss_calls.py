"""The calls of a stage's loss modules, which can be repeated without the networks."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ltfast.engine.stage import Stage


@dataclass(frozen=True)
class LossCall:
    """A call of a loss module; its arguments are detached from what computed them.

    Attributes:
        loss: the module.
        args, kwargs: the arguments.
    """

    loss: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @cached_property
    def differentiable(self) -> list[Tensor]:
        """The arguments and parameters that require a gradient."""
        tensors = (*self.args, *self.kwargs.values(), *self.loss.parameters())
        return [x for x in tensors if isinstance(x, Tensor) and x.requires_grad]

    def repeat(self, autocast: Callable[[], AbstractContextManager[Any]]) -> None:
        """Run the forward pass, under `autocast()`, and the backward pass of a call that has `differentiable` ones."""
        with autocast():
            value = self.loss(*self.args, **self.kwargs)
        torch.autograd.grad(value, self.differentiable, torch.ones_like(value), allow_unused=True)


@contextmanager
def caught_loss_calls(stage: Stage) -> Iterator[list[LossCall]]:
    """Collect the calls of the stage's `losses()` while the context lasts, in their order."""
    calls: list[LossCall] = []

    def catch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(LossCall(module, tuple(map(_leaf, args)), {key: _leaf(value) for key, value in kwargs.items()}))

    handles = [loss.register_forward_pre_hook(catch, with_kwargs=True) for loss in stage.losses()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _leaf(value: Any) -> Any:
    return value.detach().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value
