"""Optimiser and learning-rate schedule, from timm."""

from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal

from ltfast.engine.settings import check, check_finite, option

if TYPE_CHECKING:
    from timm.scheduler.scheduler import Scheduler
    from torch import nn
    from torch.optim import Optimizer


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """How a stage is optimised.

    Raises:
        ValueError: a setting is out of its range.
    """

    epochs: int = option(30, "passes over the training images")
    batch_size: int = option(64, "images a batch and process")
    optimizer: str = option("sgd", "any optimiser timm knows: sgd (with Nesterov momentum), adamw, lamb, ...")
    lr: float = option(0.1, "peak learning rate, as it is: not scaled by the batch size")
    momentum: float = option(0.9, "momentum, for optimisers that have one")
    weight_decay: float = option(5e-4, "weight decay, on every parameter")
    schedule: Literal["cosine", "multistep", "constant"] = option("cosine", "how the learning rate falls")
    warmup_epochs: int = option(0, "epochs in which the learning rate rises linearly from 0")
    milestones: tuple[int, ...] = option((160, 180), "multistep: epochs at which the learning rate falls")
    decay_rate: float = option(0.1, "multistep: factor by which it falls")

    def __post_init__(self) -> None:
        check_finite(self)
        check(self.epochs >= 1, "epochs", "at least 1", self.epochs)
        check(self.batch_size >= 1, "batch_size", "at least 1", self.batch_size)
        check(self.lr > 0, "lr", "a positive number", self.lr)
        check(0 <= self.momentum < 1, "momentum", "a number in [0, 1)", self.momentum)
        check(self.weight_decay >= 0, "weight_decay", "at least 0", self.weight_decay)
        within = f"0 to {self.epochs}, the epochs of training (lower --warmup-epochs or raise --epochs)"
        check(0 <= self.warmup_epochs <= self.epochs, "warmup_epochs", within, self.warmup_epochs)
        check(0 < self.decay_rate <= 1, "decay_rate", "a number in (0, 1]", self.decay_rate)
        rising = all(a < b for a, b in zip(self.milestones, self.milestones[1:], strict=False))
        check(rising and all(m > 0 for m in self.milestones), "milestones", "rising epochs above 0", self.milestones)
        if self.schedule == "multistep":
            falls = any(m < self.epochs for m in self.milestones)
            check(falls, "milestones", f"one below {self.epochs}, the epochs of training", self.milestones)

    def make_optimizer(self, module: "nn.Module", **options: Any) -> "Optimizer":
        """Make the optimiser of the module's parameters that require a gradient.

        Args:
            module: has the parameters.
            options: arguments of `timm.optim.create_optimizer_v2` (betas, layer_decay, ...), which override settings.

        Raises:
            ValueError: timm does not have the optimiser.
        """
        from timm.optim import create_optimizer_v2, list_optimizers  # seconds to import; --help needs none of it

        known = list_optimizers()
        near = ", ".join(map(str, get_close_matches(self.optimizer, known)))
        expected = f"one of timm.optim.list_optimizers(){f' ({near}, ...)' if near else ''}"
        check(self.optimizer in known, "optimizer", expected, self.optimizer)
        # the long-tail literature decays every parameter; timm's default leaves out biases and normalisation
        settings: dict[str, Any] = {
            "lr": self.lr,
            "momentum": self.momentum,
            "weight_decay": self.weight_decay,
            "filter_bias_and_bn": False,
        }
        return create_optimizer_v2(module, opt=self.optimizer, **{**settings, **options})

    def make_scheduler(self, optimizer: "Optimizer", steps_per_epoch: int) -> "Scheduler":
        """Make the learning-rate schedule. `scheduler.step_update(k)` sets the rate of step k of the stage."""
        from timm.scheduler import create_scheduler_v2

        scheduler, _ = create_scheduler_v2(
            optimizer,
            sched=self.schedule,
            num_epochs=self.epochs,
            warmup_epochs=self.warmup_epochs,
            warmup_lr=0.0,
            # timm lets a milestone take effect one step early; half a step is safe from rounding
            decay_milestones=[m + 0.5 / steps_per_epoch for m in self.milestones],  # type: ignore[misc]
            decay_rate=self.decay_rate,
            step_on_epochs=False,
            updates_per_epoch=steps_per_epoch,
        )
        return scheduler
