"""A cosine classifier whose classes are split over processes."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltfast.ops.core.collectives import class_ranges, gather, rank, world_size


class ClassParallelCosineClassifier(nn.Module):
    """`CosineClassifier` for more classes than fit on one device.

    Each process of `torch.distributed` stores the weights of its own classes
    (`ltfast.ops.core.collectives.class_ranges`), and applies them to the features of all processes.

    Its loss is `AGCLLoss(class_counts, class_parallel=True)`. In a script started by `torchrun`:

        backbone = DistributedDataParallel(backbone)
        head = ClassParallelCosineClassifier(512, 1_000_000).to(device)
        criterion = AGCLLoss(class_counts, class_parallel=True)
        optimizer = torch.optim.SGD([*backbone.parameters(), *head.parameters()], lr=0.1)
        for images, labels in batches:  # each process has its own batches, all of the same size
            loss = criterion(head(backbone(images)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    The weights receive the gradient of the mean loss over all processes, like the backbone: this module averages it
    over the processes, as `DistributedDataParallel` does for the backbone. `DistributedDataParallel` must not average
    the gradient of these weights again. If they are part of a model that it wraps, exclude them first:

        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ["head.weight"])

    The norm of all gradients (`clip_grad_norm_`) and the overflows found by `GradScaler` differ between processes: clip
    only the backbone's gradients, and use `torch.distributed.fsdp.sharded_grad_scaler.ShardedGradScaler` for float16.

    `state_dict` has the rows of this process, so each process saves its own checkpoint; loading that of another process
    raises an error. `whole_weight` returns all rows.

    Args:
        in_features: width D of the features.
        num_classes: number of classes C over all processes.

    Shapes: features (B, D) of this process -> cosines (W B, C_r) in [-1, 1], in the features' dtype: the rows of all W
    processes in rank order, and the columns of this process's classes. Each process receives (W - 1) B D values in the
    forward pass and as many in the backward pass.

    Raises:
        ValueError: a size is below 1, there are fewer classes than processes, or the features are not (B, in_features).
    """

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        for name, value in (("in_features", in_features), ("num_classes", num_classes)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.in_features = in_features
        self.num_classes = num_classes
        self.classes = class_ranges(num_classes)[rank()]
        # As in CosineClassifier, but processes with the same seed must not get the same weights.
        seed = int(torch.randint(2**62, ())) + rank()
        weight = torch.randn(len(self.classes), in_features, generator=torch.Generator().manual_seed(seed))
        self.weight = nn.Parameter(F.normalize(weight, dim=-1))

    def forward(self, features: Tensor) -> Tensor:
        if features.dim() != 2 or features.shape[1] != self.in_features:
            raise ValueError(f"features must be (batch, {self.in_features}), got shape {tuple(features.shape)}")
        # Norms need float32 at least: under autocast, half-precision features would lose precision or overflow.
        unit = gather(F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1))
        weight = F.normalize(_Averaged.apply(self.weight), dim=-1)
        # Rounding can exceed [-1, 1] by one ulp; the clamp keeps functions such as acos finite.
        return F.linear(unit.to(features.dtype), weight.to(features.dtype)).clamp(-1.0, 1.0)

    @torch.no_grad()
    def whole_weight(self) -> Tensor:
        """Gather the weights of all classes (C, D) in host memory. All processes must call it."""
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
            raise RuntimeError(f"the checkpoint has classes {theirs}: expected {expected}, the classes of this process")

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, num_classes={self.num_classes}, classes={self.classes}"


class _Averaged(torch.autograd.Function):
    """Averages the gradient over the processes: the incoming gradient is the sum over their losses."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient / world_size()
