"""The cosine classifier with its classes split over processes."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltfast.ops.core.collectives import class_ranges, gather, rank, world_size


class ClassParallelCosineClassifier(nn.Module):
    """`CosineClassifier` for more classes than one device holds: each process of `torch.distributed` has the weights of
    its own share of them (`ltfast.ops.core.collectives.class_ranges`), and takes them to the features of all processes.

    Its loss is `AGCLLoss(class_counts, class_parallel=True)`. In a script that `torchrun` starts:

        backbone = DistributedDataParallel(backbone)
        head = ClassParallelCosineClassifier(512, 1_000_000).to(device)
        criterion = AGCLLoss(class_counts, class_parallel=True)
        optimizer = torch.optim.SGD([*backbone.parameters(), *head.parameters()], lr=0.1)
        for images, labels in batches:  # each process its own, of one size
            loss = criterion(head(backbone(images)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    The weights then learn by the gradient of the mean loss of all processes, as the backbone does: what
    `DistributedDataParallel` averages, this module divides. It must not average these weights too. Where they are part
    of a model that it wraps, leave them out before:

        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ["head.weight"])

    A norm over all gradients (`clip_grad_norm_`) and what `GradScaler` finds in them differ between processes: clip the
    backbone's alone, and with float16 use `torch.distributed.fsdp.sharded_grad_scaler.ShardedGradScaler`.

    `state_dict` has this process's rows, so each process writes a checkpoint of its own; another's is refused.
    `whole_weight` gives all of them.

    Args:
        in_features: width D of the features.
        num_classes: number of classes C, of all processes together.

    Shapes: features (B, D) of this process -> cosines (W B, C_r) in [-1, 1] of the rows of all W processes, in their
    order, for this process's classes, in the features' dtype. Each process receives (W - 1) B D values, and as many in
    the backward pass.

    Raises:
        ValueError: a size below 1, fewer classes than processes, or features that are not (B, in_features).
    """

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        for name, value in (("in_features", in_features), ("num_classes", num_classes)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.in_features = in_features
        self.num_classes = num_classes
        self.classes = class_ranges(num_classes)[rank()]
        # as in CosineClassifier; processes that were given the same seed must not have the same weights
        seed = int(torch.randint(2**62, ())) + rank()
        weight = torch.randn(len(self.classes), in_features, generator=torch.Generator().manual_seed(seed))
        self.weight = nn.Parameter(F.normalize(weight, dim=-1))

    def forward(self, features: Tensor) -> Tensor:
        if features.dim() != 2 or features.shape[1] != self.in_features:
            raise ValueError(f"features must be (batch, {self.in_features}), got shape {tuple(features.shape)}")
        # the norms in float32 at least: under autocast, half-precision features would lose digits or overflow
        unit = gather(F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1))
        weight = F.normalize(_Averaged.apply(self.weight), dim=-1)
        # rounding can leave [-1, 1] by an ulp; the clamp keeps acos and the like finite downstream
        return F.linear(unit.to(features.dtype), weight.to(features.dtype)).clamp(-1.0, 1.0)

    @torch.no_grad()
    def whole_weight(self) -> Tensor:
        """The weights of all classes (C, D), in host memory; all processes must call it."""
        whole = torch.empty(self.num_classes, self.in_features, dtype=self.weight.dtype)
        for process, classes in enumerate(class_ranges(self.num_classes)):
            part = self.weight.new_empty(len(classes), self.in_features)
            if process == rank():
                part = self.weight.detach().contiguous()
            if world_size() > 1:
                torch.distributed.broadcast(part, process)
            whole[classes.start : classes.stop] = part.cpu()
        return whole

    def get_extra_state(self) -> dict[str, int]:
        return {"first": self.classes.start, "last": self.classes.stop - 1, "num_classes": self.num_classes}

    def set_extra_state(self, state: Any) -> None:
        own = self.get_extra_state()
        if state != own:
            theirs, expected = ("{first} to {last} of {num_classes}".format(**x) for x in (state, own))
            raise RuntimeError(f"the checkpoint is of classes {theirs}: expected {expected}, this process's")

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, num_classes={self.num_classes}, classes={self.classes}"


class _Averaged(torch.autograd.Function):
    """The gradient of every process's loss has come together: their mean instead of their sum."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient / world_size()
