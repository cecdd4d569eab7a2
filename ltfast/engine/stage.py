"""The parts of a method: stages, which are trained one after the other, batches, predictors and the plan."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from ltfast.engine.optimisation import Optimisation


class Batches(Protocol):
    """A stage's training batches: tensors, or nested tuples of them, the first of which has a row for each image. Under
    several processes, each process has the same number of batches, of the same sizes."""

    def __len__(self) -> int:
        """The number of batches in an epoch, at least 1."""

    def epoch(self, epoch: int, skip: int) -> Iterator[Any]:
        """The batches of epoch `epoch` without the first `skip`. Each call gives the same ones."""

    def finish(self, batch: Any) -> Any:
        """The batch that the stage gets, from a batch of `epoch` on the training device: views are augmented further
        there. It draws no random numbers."""
        return batch

    def close(self) -> None:
        """Called when the stage ends, to end the processes that load images. `epoch` may still be called afterwards."""


class Predictor(nn.Module):
    """Computes class scores of test images."""

    views: int = 1
    """The number of views that `predict` uses, from the first one of a test batch."""

    adapts: bool = False
    """Whether `adapt` learns from the test images."""

    score_scale: float = 1.0
    """The factor of the class scores in the softmax: the loss's own, for scores that are cosines."""

    def adapt(self, views: Iterable[Sequence[Tensor]]) -> None:
        """Called before the test images are predicted, for methods that learn from them as a whole. `views` has this
        process's images without their labels, which are loaded as it is iterated."""

    def predict(self, *views: Tensor) -> Tensor:
        """Class scores (B, C) of test images, from their views in the plan's test batches."""
        raise NotImplementedError


class Stage(Predictor):
    """One training stage of a method.

    Everything that a stage trains or keeps from step to step (networks, momentum encoders, queues, masks, estimators)
    is a submodule, parameter or buffer of the stage, so that the checkpoint contains it. Stages of one method may share
    modules; in this way a stage continues to train what the stage before it trained.

    A stage defines `forward`, and `predict` unless `evaluated` is False; the other methods have defaults. Random
    numbers may come from the global generators, which the engine seeds before each call.

    While a stage trains, its frozen submodules are in evaluation mode: dropout is off, and BatchNorm's statistics do
    not change. A stage that needs training mode there, for example in a momentum encoder with BatchNorm, sets it:

        def train(self, mode: bool = True) -> "Stage":
            super().train(mode)
            self.momentum_encoder.train(mode)
            return self

    Under several processes, the buffers of the first process overwrite those of the others before each step and after
    each epoch. A buffer that collects from the batches of all processes must therefore be computed from gathered
    values. It is then equal in all processes, and `replicated` avoids the exchange.

    Args:
        name: shown in progress, logs and messages; unique among the stages of a method.
        batches: the training batches.
        optimisation: epochs, optimiser and schedule.
    """

    evaluated: bool = True
    """Whether `predict` gives class scores, so that the engine reports accuracy after each epoch."""

    selects: bool = True
    """Whether the stage may end before its last epoch, or with the weights of an earlier one. It may not if its epochs
    are the steps of a schedule that has to be completed, such as a pruning."""

    epoch: int = 0
    """The current epoch of this stage, which the engine sets."""

    epochs_setting: str = "epochs"
    """The setting that gives the number of epochs, for the printed plan."""

    trains: str | None = None
    """What the stage trains, for the printed plan; None if `trained` says it."""

    onward: str | None = "--init {run} --epochs {epochs}"
    """The options of a new run that trains a finished run on, if this is its last stage; None if no run does."""

    initial: Callable[[], None] | None = None
    """Loads the weights with which the first stage of a run starts; None leaves them unchanged."""

    def __init__(self, name: str, batches: Batches, optimisation: Optimisation) -> None:
        super().__init__()
        self.name = name
        self.batches = batches
        self.optimisation = optimisation

    def trained(self) -> Iterable[nn.Parameter]:
        """The parameters that this stage trains (all, unless overridden). The engine freezes the others."""
        return self.parameters()

    def replicated(self) -> Iterable[Tensor]:
        """The buffers that all processes compute bit for bit alike, so that the engine need not send them: queues,
        statistics, masks (none, unless overridden)."""
        return ()

    def train(self, mode: bool = True) -> "Stage":
        """Set training mode, except for submodules whose parameters are all frozen; or evaluation mode for all."""
        super().train(mode)
        if mode:
            trained = set(self.trained())
            for module in self.modules():
                parameters = set(module.parameters())
                if parameters and parameters.isdisjoint(trained):
                    module.eval()
        return self

    def optimizer(self) -> Optimizer:
        """Make the optimiser of the parameters that require a gradient."""
        return self.optimisation.make_optimizer(self)

    def start(self) -> None:
        """Called once, before the first epoch, to change weights or masks for this stage. It calls `initial`."""
        if self.initial is not None:
            self.initial()

    def start_epoch(self) -> None:
        """Called once at the start of each epoch, for example to exchange estimators or to prune further."""

    def prepare(self, batch: Any) -> Any:
        """The input of `forward`. Code that cannot be compiled belongs here, such as mixing with NumPy's generator."""
        return batch

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a prepared batch, a scalar to minimise (a mean over the batch), and named scalars to log.

        With `--compile` it is compiled as a whole: it must not read the value of a tensor, and numbers that change from
        epoch to epoch must be tensors.
        """
        raise NotImplementedError

    def after_backward(self) -> None:
        """Called before each optimiser step, when it has the gradients of all its batches, for example to zero those of
        frozen weights. With `--accumulate`, an optimiser step has several batches, with a call of `forward` each."""

    def after_step(self) -> None:
        """Called after each optimiser step, for example to update a momentum encoder or to restore frozen weights."""

    def before_save(self) -> None:
        """Called in all processes before the first one writes a checkpoint, to collect state that is distributed over
        them. The stage's state dict contains it afterwards."""

    def losses(self) -> Sequence[nn.Module]:
        """The loss modules that `forward` calls. The engine times them in the last stage that has any."""
        return []


def freeze_untrained(stage: Stage) -> None:
    """Let gradients reach the parameters that the stage trains, and no others."""
    for parameter in stage.parameters():
        parameter.requires_grad_(False)
    for parameter in stage.trained():
        parameter.requires_grad_(True)


def replicated_names(stage: Stage) -> set[str]:
    """The names of the stage's `replicated` buffers."""
    own = {id(buffer) for buffer in stage.replicated()}
    return {name for name, buffer in stage.named_buffers() if id(buffer) in own}


@dataclass(frozen=True)
class Adapted:
    """A network on a backbone of which no stage trains more than some parameters and that can be loaded again. The
    checkpoint of a finished run contains only the rest, and these parameters.

    Attributes:
        network: the backbone and the modules that adapt it.
        backbone: a submodule of the network.
        recall: loads the backbone's weights again.
        trained: parameters that a stage trains; those of the backbone are kept.
    """

    network: nn.Module
    backbone: nn.Module
    recall: Callable[[], object]
    trained: Sequence[nn.Parameter] = ()

    def left_out(self, module: nn.Module) -> set[str]:
        """The names in a module's state dict that belong to the backbone and are not trained."""
        own = {id(tensor) for tensor in (*self.backbone.parameters(), *self.backbone.buffers())}
        own -= {id(parameter) for parameter in self.trained}
        return {name for name, tensor in module.state_dict(keep_vars=True).items() if id(tensor) in own}


@dataclass(frozen=True)
class Plan:
    """A method, prepared for its data.

    Attributes:
        stages: in the order in which they are trained.
        test: this process's share of the test set, without overlap or padding: batches of (view, ..., labels). Of W
            processes, process r has the images r, r + W, r + 2 W, ... in this order.
        final: the predictor of the run's result, made of the stages' modules; None means the last stage.
        adapted: given by a method that adapts a frozen backbone; None keeps all weights of a finished run.
        validation: this process's share of the validation images, in batches like those of `test`. Each epoch is
            evaluated on them, and the test images are read only at the end of the run. None evaluates each epoch on the
            test images.
    """

    stages: Sequence[Stage]
    test: Iterable[Sequence[Tensor]]
    final: Predictor | None = None
    adapted: Adapted | None = None
    validation: Iterable[Sequence[Tensor]] | None = None

    @property
    def predictor(self) -> Predictor:
        """The predictor of the run's result."""
        return self.stages[-1] if self.final is None else self.final
