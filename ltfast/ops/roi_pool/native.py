"""The CPU kernels: csrc/ops/roi_pool.cpp."""

import torch
from torch import Tensor

from ltfast.ops.core import backends
from ltfast.ops.roi_pool.settings import RoiPoolSettings


def roi_pool(features: Tensor, boxes: Tensor, pooled: Tensor, channels_last: bool, settings: RoiPoolSettings) -> None:
    _call(features, boxes, pooled, False, channels_last, settings)


def roi_pool_backward(
    gradient: Tensor, boxes: Tensor, grad_pooled: Tensor, channels_last: bool, settings: RoiPoolSettings
) -> None:
    _call(gradient, boxes, grad_pooled, True, channels_last, settings)


def _call(
    features: Tensor, boxes: Tensor, pooled: Tensor, backward: bool, channels_last: bool, settings: RoiPoolSettings
) -> None:
    backends.native().roi_pool(
        str(features.dtype)[6:],
        features.data_ptr(),
        boxes.data_ptr(),
        pooled.data_ptr(),
        *features.shape,
        boxes.shape[1],
        backward,
        channels_last,
        *settings,
        torch.get_num_threads(),
    )
