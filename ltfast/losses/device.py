from torch import Tensor, nn


def follow(module: nn.Module, tensor: Tensor) -> None:
    """Move a loss to the device of its input: the authors' losses live on the GPU and are never moved."""
    if any(buffer.device != tensor.device for buffer in module.buffers()):
        module.to(tensor.device)
