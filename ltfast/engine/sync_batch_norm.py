"""BatchNorm whose training statistics cover the batches of all processes."""

from typing import Any

import torch
from torch import Tensor, nn

from ltfast.ops.core.torch_internals import BatchNorm


class SyncBatchNorm(BatchNorm):
    """Synchronised BatchNorm for processes without GPUs: `nn.SyncBatchNorm` does not accept CPU tensors.

    In training mode it is `nn.BatchNorm2d` on the joined batch, in which the processes may have different numbers of
    rows. The variance is computed from the deviations from the joint mean. In evaluation mode it is `nn.BatchNorm2d`.

    Args:
        norm: a BatchNorm of any number of dimensions, also one of timm's with an activation. The new module has its
            parameters and buffers.

    Shapes: (B, C, ...), any float dtype, computed in float32 at least -> the same. `torch.distributed` is initialised.
    """

    def __init__(self, norm: BatchNorm) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, affine=False, track_running_stats=False)
        self.affine, self.track_running_stats, self.training = norm.affine, norm.track_running_stats, norm.training
        for name, parameter in norm.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, buffer in norm.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        self.drop, self.act = (getattr(norm, name, nn.Identity()) for name in ("drop", "act"))

    def forward(self, x: Tensor) -> Tensor:
        """
        Raises:
            ValueError: x has less than two dimensions, or all processes together have one value per channel.
        """
        return self.act(self.drop(self._joint(x) if self.training else super().forward(x)))

    def _joint(self, x: Tensor) -> Tensor:
        from torch.distributed.nn.functional import all_reduce  # not in every build of torch

        self._check_input_dim(x)
        values = x if x.dtype == torch.float64 else x.float()
        others = [dim for dim in range(x.dim()) if dim != 1]
        shape = [-1, *[1] * (x.dim() - 2)]
        number = values.new_tensor([x.numel() / x.shape[1]])
        sums = all_reduce(torch.cat([values.sum(others), number]))
        number = sums[-1].detach()
        if number < 2:
            raise ValueError(f"x has shape {tuple(x.shape)}: expected more than 1 value per channel in training")
        mean = sums[:-1] / number
        centred = values - mean.view(shape)
        variance = all_reduce(centred.square().sum(others)) / number
        if self.track_running_stats:
            self._track(mean.detach(), variance.detach() * number / (number - 1))
        scale = (variance + self.eps).rsqrt()
        if self.affine:
            scale = scale * self.weight
        result = centred * scale.view(shape)
        return (result + self.bias.view(shape) if self.affine else result).to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        for running, value in ((self.running_mean, mean), (self.running_var, variance)):
            assert running is not None
            running.lerp_(value.to(running.dtype), share)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"x has shape {tuple(input.shape)}: expected (batch, channels, ...)")


def synchronise_batch_norm(module: nn.Module, device: torch.device) -> None:
    """Replace each BatchNorm in a module by a synchronised one with the same parameters and buffers, under the same
    names. Synchronised ones stay as they are.

    Args:
        module: the module, which is not a BatchNorm itself.
        device: the device of the training.
    """
    from timm.layers import convert_sync_batchnorm

    exchanged: dict[BatchNorm, Any] = {}  # a module in two places stays one module
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, BatchNorm) and not isinstance(child, (SyncBatchNorm, nn.SyncBatchNorm)):
                if child not in exchanged:
                    exchanged[child] = SyncBatchNorm(child) if device.type == "cpu" else convert_sync_batchnorm(child)
                setattr(parent, name, exchanged[child])
