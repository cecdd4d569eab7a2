from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ltfast.errors import InputError
from ltfast.ops import apply_masks_, importance_threshold


class SubModels(nn.Module):
    """A network whose weights are divided among stages: sub-model t has the weights of stages 1 to t, and zeros
    elsewhere.

    Cong et al., "Decoupled Optimisation for Long-Tailed Visual Recognition", AAAI 2024. There is one set of weights,
    with one byte per weight for the stage that owns it. A stage trains the weights that no earlier stage has kept,
    prunes the unimportant ones, and leaves them to the next stage.

    Weights are the parameters with two or more dimensions. The other parameters (biases, scale and shift of
    normalisation) and the buffers (BatchNorm statistics) are a fraction of a percent of the values. Each stage has its
    own copy of them, initialised from the previous stage. With shared statistics, a later stage would change the
    outputs of earlier sub-models. If scales could be pruned, a channel would be disabled together with everything that
    later stages train in it.

    Args:
        network: maps images to class scores.
        stages: number of stages T, 1 to 254.

    Attributes:
        network: the network with the weights of the current stage; train it like any network.
        weights: the weights of the network, by name.
        stage: the current stage, from 1.

    Raises:
        ValueError: the network has no weights, or `stages` is out of its range.
    """

    _stage: Tensor
    network: Any  # nn.Module's attributes have no types

    def __init__(self, network: nn.Module, stages: int) -> None:
        super().__init__()
        if not 1 <= stages <= 254:
            raise ValueError(f"stages is {stages}: expected 1 to 254")
        self.network = network
        self.stages = stages
        self._names = [name for name, p in network.named_parameters() if p.dim() >= 2]
        if not self._names:
            raise InputError("network has no parameters with two or more dimensions: expected weights for the stages")
        self._others = [name for name, p in network.named_parameters() if p.dim() < 2]
        self._others += [name for name, _ in network.named_buffers()]
        self.stage = 1
        self.register_buffer("_stage", torch.ones((), dtype=torch.int64))  # the same value, for checkpoints
        tensors = {**self.weights, **self._own()}
        for i, name in enumerate(self._names):
            self.register_buffer(f"_owner_{i}", torch.ones_like(tensors[name], dtype=torch.uint8))
        for t in range(1, stages):
            for i, name in enumerate(self._others):
                self.register_buffer(f"_kept_{t}_{i}", tensors[name].detach().clone())
        self._still: list[tuple[nn.Parameter, Tensor, Tensor]] | None = None
        self.register_load_state_dict_post_hook(SubModels._loaded)

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        parameters = dict(self.network.named_parameters())
        return {name: parameters[name] for name in self._names}

    def owners(self) -> list[Tensor]:
        """The owner of each element of `weights`, uint8 tensors of their shapes: the stage that keeps or trains the
        element, or the current stage plus 1 if the current stage has pruned it."""
        return [self.get_buffer(f"_owner_{i}") for i in range(len(self._names))]

    @torch.no_grad()
    def begin(self, stage: int, fresh: nn.Module) -> None:
        """Start the next stage: the weights pruned by the current stage take their values from `fresh`.

        Args:
            stage: the current stage plus 1.
            fresh: a newly initialised network of the same architecture.

        Raises:
            ValueError: `stage` is not the next stage, or the current stage has pruned nothing.
        """
        if stage != self.stage + 1 or stage > self.stages:
            raise ValueError(f"stage is {stage}: expected {self.stage + 1}, of {self.stages}")
        pruned = [owner >= stage for owner in self.owners()]
        if not any(bool(mask.any()) for mask in pruned):
            raise InputError(f"stage {stage} has nothing to train: stage {self.stage} has pruned nothing")
        for name, tensor in self._own().items():
            self.get_buffer(f"_kept_{self.stage}_{self._others.index(name)}").copy_(tensor)
        new = dict(fresh.named_parameters())
        weights = self.weights
        apply_masks_(list(weights.values()), pruned, [new[name].detach().to(w) for name, w in weights.items()])
        self._stage.fill_(stage)
        self.stage = stage
        self._still = None

    @torch.no_grad()
    def prune(self, importance: Sequence[Tensor], fraction: float) -> None:
        """Prune the least important of the weights that no earlier stage has kept: set them to zero, and leave them to
        the next stage. Weights pruned by an earlier call may be returned to this stage, as zeros.

        Args:
            importance: the importance of each of `weights`, with their shapes.
            fraction: the fraction of these weights to prune, in [0, 1]; exact to one weight, with ties broken by order.
        """
        free = [owner >= self.stage for owner in self.owners()]
        lost = lowest(importance, free, fraction)
        for owner, mask, chosen in zip(self.owners(), free, lost, strict=True):
            owner[mask] = self.stage
            owner[chosen] = self.stage + 1
        apply_masks_(list(self.weights.values()), lost)
        self._still = None

    @contextmanager
    def pruned(self, importance: Sequence[Tensor], fraction: float) -> Iterator[None]:
        """Prune temporarily, within the context, to test the effect of `prune`."""
        weights = list(self.weights.values())
        lost = lowest(importance, [owner >= self.stage for owner in self.owners()], fraction)
        before = [weight.detach().clone() for weight in weights]
        try:
            apply_masks_(weights, lost)
            yield
        finally:
            apply_masks_(weights, lost, before)

    def still_gradients_(self) -> None:
        """Zero the gradients of the weights that the current stage does not train."""
        held = [(weight.grad, mask) for weight, mask, _ in self._held() if weight.grad is not None]
        apply_masks_([gradient for gradient, _ in held], [mask for _, mask in held])

    def still_weights_(self) -> None:
        """Restore the weights that the current stage does not train, bit for bit, since momentum and weight decay
        change them. Call it after each optimiser step, and `still_gradients_` before it."""
        held = self._held()
        apply_masks_([weight for weight, _, _ in held], [mask for _, mask, _ in held], [value for _, _, value in held])

    def _held(self) -> list[tuple[nn.Parameter, Tensor, Tensor]]:
        """The weights that the current stage does not train completely, with masks of the fixed elements and the values
        to restore."""
        if self._still is None or any(weight.device != value.device for weight, _, value in self._still):
            masked = [(w, owner != self.stage) for w, owner in zip(self.weights.values(), self.owners(), strict=True)]
            self._still = [(w, mask, w.detach().clone()) for w, mask in masked if mask.any()]
        return self._still

    def _loaded(self, _: object) -> None:
        """Update the current stage, and discard the values to restore, after a checkpoint is loaded."""
        self.stage = int(self._stage)
        self._still = None

    def tensors(self, stage: int) -> dict[str, Tensor]:
        """The parameters and buffers of sub-model `stage` (at most the current stage) by name; differentiable."""
        if not 1 <= stage <= self.stage:
            raise ValueError(f"stage is {stage}: expected 1 to {self.stage}, the current stage")
        weights = {
            name: weight.masked_fill(owner > stage, 0)
            for (name, weight), owner in zip(self.weights.items(), self.owners(), strict=True)
        }
        if stage == self.stage:
            return {**weights, **self._own()}
        return {**weights, **{name: self.get_buffer(f"_kept_{stage}_{i}") for i, name in enumerate(self._others)}}

    def forward(self, images: Tensor, stage: int | None = None) -> Tensor:
        """The class scores (B, C) of a sub-model; None means that of the current stage."""
        if stage is None or stage == self.stage:  # the weights it has pruned are already zero
            return self.network(images)
        return functional_call(self.network, self.tensors(stage), (images,))

    def features(self, images: Tensor) -> Tensor:
        """The input (B, D) of `head` in the current sub-model, for a network that has `features`, such as
        `ImageClassifier`."""
        return self.network.features(images)

    @property
    def head(self) -> nn.Module:
        """The classifier of the network, for a network that has one."""
        return self.network.head

    def scores(self, images: Tensor) -> Tensor:
        """The class scores of all sub-models up to the current stage, (B, T, C)."""
        return torch.stack([self(images, stage) for stage in range(1, self.stage + 1)], 1)

    def _own(self) -> dict[str, Tensor]:
        """The current parameters and buffers of which each stage has its own copy, by name."""
        tensors = {**dict(self.network.named_parameters()), **dict(self.network.named_buffers())}
        return {name: tensors[name] for name in self._others}


@torch.no_grad()
def lowest(values: Sequence[Tensor], masks: Sequence[Tensor], fraction: float) -> list[Tensor]:
    """Boolean masks of the lowest masked values: round(fraction * number of masked elements) elements over all tensors,
    with ties broken by order."""
    number = round(fraction * sum(int(mask.sum()) for mask in masks))
    if number == 0:
        return [torch.zeros_like(mask) for mask in masks]
    threshold = importance_threshold(values, fraction, masks=masks)
    chosen = [(mask & (value < threshold)).contiguous() for value, mask in zip(values, masks, strict=True)]
    missing = number - sum(int(mask.sum()) for mask in chosen)
    for value, mask, under in zip(values, masks, chosen, strict=True):
        equal = (mask & (value == threshold)).flatten().nonzero().flatten()[:missing]
        under.view(-1)[equal] = True
        missing -= len(equal)
    return chosen
