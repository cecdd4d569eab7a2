"""What a method is made of: stages, trained one after the other."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from ltfast.engine.optimisation import Optimisation


class Batches(Protocol):
    """A stage's training batches: tensors, or nested tuples of them, whose first has an image a row. Under several
    processes each has as many, of the same sizes."""

    def __len__(self) -> int:
        """Batches an epoch, at least 1."""

    def epoch(self, epoch: int, skip: int) -> Iterator[Any]:
        """Epoch `epoch`'s batches without the first `skip`; the same ones each time they are asked for."""

    def close(self) -> None:
        """Called when the stage ends: to end the processes that load images. `epoch` may still be called after it."""


class Predictor(nn.Module):
    """What gives the test images their class scores."""

    views: int = 1
    """How many of the views that a test batch has, from the first, `predict` looks at."""

    def adapt(self, views: Iterable[Sequence[Tensor]]) -> None:
        """Called before the test images are predicted, with this process's, without their labels: for methods that
        learn from them as a whole. Images are loaded as `views` is iterated."""

    def predict(self, *views: Tensor) -> Tensor:
        """Class scores (B, C) of test images, from the views of them that the plan's test batches have."""
        raise NotImplementedError


class Stage(Predictor):
    """One training stage of a method.

    What a stage trains or carries from step to step (networks, momentum encoders, queues, masks, estimators) is a
    submodule, parameter or buffer of it, so the checkpoint holds it. Stages of one method may share modules: that is
    how a stage takes up what the one before it trained.

    A stage defines `forward`, and `predict` unless `evaluated` is False; the other methods have defaults. Everything
    random may come from the global generators: the engine seeds them before each call.

    While a stage trains, what it has frozen is in evaluation mode: dropout rests, and BatchNorm's statistics stay. A
    stage that wants otherwise, of a momentum encoder with BatchNorm for instance, says so:

        def train(self, mode: bool = True) -> "Stage":
            super().train(mode)
            self.momentum_encoder.train(mode)
            return self

    Under several processes, the others' buffers are overwritten with those of the first before each step and after
    each epoch. So a buffer that collects from the batches of all processes is computed of gathered values; it is then
    the same everywhere, and `replicated` saves the exchange.

    Args:
        name: shown in progress, logs and messages; one of its own for each stage of a method.
        batches: the training batches.
        optimisation: epochs, optimiser and schedule.
    """

    evaluated: bool = True
    """Whether `predict` gives class scores, so that the engine reports accuracy after each epoch."""

    epoch: int = 0
    """The current epoch of this stage, set by the engine: for whatever depends on the epoch."""

    def __init__(self, name: str, batches: Batches, optimisation: Optimisation) -> None:
        super().__init__()
        self.name = name
        self.batches = batches
        self.optimisation = optimisation

    def trained(self) -> Iterable[nn.Parameter]:
        """The parameters this stage trains (all of its own, unless overridden); the engine freezes the others."""
        return self.parameters()

    def replicated(self) -> Iterable[Tensor]:
        """Buffers that every process computes the same bits of, and the engine need not send: queues, statistics, masks
        (none of its own, unless overridden)."""
        return ()

    def train(self, mode: bool = True) -> "Stage":
        """Training mode, except for submodules whose parameters are all frozen; or evaluation mode, of everything."""
        super().train(mode)
        if mode:
            trained = set(self.trained())
            for module in self.modules():
                parameters = set(module.parameters())
                if parameters and parameters.isdisjoint(trained):
                    module.eval()
        return self

    def optimizer(self) -> Optimizer:
        """The optimiser of the parameters that require a gradient."""
        return self.optimisation.make_optimizer(self)

    def start(self) -> None:
        """Called once, before the first epoch: to change weights or masks for this stage."""

    def start_epoch(self) -> None:
        """Called once at the start of each epoch: to exchange estimators, prune a step further, ..."""

    def prepare(self, batch: Any) -> Any:
        """What `forward` gets of a batch: for what the compiler cannot take in, as mixing by NumPy's random numbers."""
        return batch

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a prepared batch, a scalar to minimise (a mean over the batch), and named scalars to log.

        With `--compile` it is compiled whole: it reads no tensor's value, and numbers that change from epoch to epoch
        are tensors.
        """
        raise NotImplementedError

    def after_backward(self) -> None:
        """Called before each optimiser step, with the gradients of all its batches: to zero those of frozen weights.
        With `--accumulate` an optimiser step has several batches, and `forward` is called once for each."""

    def after_step(self) -> None:
        """Called after each optimiser step: to move a momentum encoder, restore frozen weights, ..."""

    def before_save(self) -> None:
        """Called in all processes before the first writes a checkpoint: to collect what is shared out to them. The
        stage's state dict holds it afterwards."""

    def losses(self) -> Sequence[nn.Module]:
        """The loss modules that `forward` calls; of the last stage that names any, the engine measures their time."""
        return []


def freeze_untrained(stage: Stage) -> None:
    """Let gradients reach the parameters that the stage trains, and no others."""
    for parameter in stage.parameters():
        parameter.requires_grad_(False)
    for parameter in stage.trained():
        parameter.requires_grad_(True)


def replicated_names(stage: Stage) -> set[str]:
    """The names of the buffers that `replicated` gives."""
    own = {id(buffer) for buffer in stage.replicated()}
    return {name for name, buffer in stage.named_buffers() if id(buffer) in own}


@dataclass(frozen=True)
class Adapted:
    """A network on a backbone that no stage trains and that can be had again: a finished run keeps the rest alone.

    Attributes:
        network: the backbone and what adapts it.
        backbone: a module of it.
        recall: puts the backbone's weights back.
    """

    network: nn.Module
    backbone: nn.Module
    recall: Callable[[], None]

    def left_out(self, module: nn.Module) -> set[str]:
        """The names in a module's state dict that are the backbone's."""
        own = {id(tensor) for tensor in (*self.backbone.parameters(), *self.backbone.buffers())}
        return {name for name, tensor in module.state_dict(keep_vars=True).items() if id(tensor) in own}


@dataclass(frozen=True)
class Plan:
    """A method made ready for its data.

    Attributes:
        stages: in the order in which they are trained.
        test: this process's share of the test set, without overlap or padding: batches of (view, ..., labels).
        final: whose `predict` gives the run's result, made of the stages' modules; None means the last stage.
        adapted: of a method that adapts a frozen backbone; None keeps all of a finished run.
    """

    stages: Sequence[Stage]
    test: Iterable[Sequence[Tensor]]
    final: Predictor | None = None
    adapted: Adapted | None = None

    @property
    def predictor(self) -> Predictor:
        """What gives the run's result."""
        return self.stages[-1] if self.final is None else self.final
