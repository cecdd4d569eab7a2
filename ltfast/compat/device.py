from torch import Tensor, nn


def follow(module: nn.Module, tensor: Tensor) -> None:
    """Move a loss to its input's device: the authors' scripts build losses on the GPU and never move them."""
    if any(buffer.device != tensor.device for buffer in module.buffers()):
        module.to(tensor.device)
