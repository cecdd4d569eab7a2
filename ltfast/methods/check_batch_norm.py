"""Checks whether BatchNorm can train on batches of one image."""

from typing import Any

import torch
from torch import Tensor, nn

from ltfast.errors import SettingError
from ltfast.ops.core.torch_internals import BatchNorm


def check_batch_norm(network: nn.Module, image_shape: tuple[int, int, int], images: int, name: str) -> None:
    """Refuse batches of one image if a BatchNorm would get one value per channel, which has no variance.

    Args:
        network: takes images (B, channels, H, W).
        image_shape: (channels, H, W).
        images: the number of images in a batch, of all processes if BatchNorm is synchronised.
        name: the setting that determines this number.

    Raises:
        SettingError: `images` is 1, and the network has such a BatchNorm.
    """
    if images > 1:
        return
    layers = {layer: path for path, layer in network.named_modules() if isinstance(layer, BatchNorm)}
    lone: list[str] = []

    def look(layer: Any, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].numel() == inputs[0].shape[1]:
            lone.append(layers[layer])

    handles = [layer.register_forward_pre_hook(look) for layer in layers]
    was_training = network.training
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(1, *image_shape))
    finally:
        network.train(was_training)
        for handle in handles:
            handle.remove()
    if lone:
        raise SettingError(
            name,
            f"at least 2: with one image, the BatchNorm {lone[0]} gets one value per channel, which has no variance",
            images,
        )
