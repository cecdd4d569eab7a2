"""DSCL's contrastive stage: a momentum encoder's keys, a queue of them, and patches."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor
from torch.optim import SGD
from torchvision.ops import roi_align

from ltfast.benchmark.cases import published_dscl as published
from ltfast.benchmark.steps.pair import FEATURE_DIM, Implementation, Size, StepPair, unit
from ltfast.losses import DSCLLoss, MemoryQueue, PBSDLoss
from ltfast.methods.dscl import QueueLosses
from ltfast.models import TwoBranchClassifier, feature_map
from ltfast.ops import patch_roi_pool

_PATCHES = 5  # of an image
_PBSD_WEIGHT = 1.5


def pair(size: Size, device: torch.device) -> StepPair:
    n, patches, pixels = size.images, (size.images, _PATCHES), size.patch_pixels
    network: Any = TwoBranchClassifier(
        size.backbone, 1, feature_dim=FEATURE_DIM, hidden_dim=None, batch_norm=False, image_size=size.pixels
    ).to(device)
    key_network = ModelEmaV3(network, decay=0.999, exclude_buffers=True).train()
    queue = MemoryQueue(FEATURE_DIM, size.queue, num_classes=size.classes).to(device)
    queue.enqueue(unit(size.queue, device), torch.randint(size.classes, (size.queue,), device=device))
    losses = QueueLosses(DSCLLoss(), PBSDLoss(), queue)
    keys, key_labels, position = queue.keys.clone(), queue.labels.clone(), 0

    def forward(pool: Callable[..., Tensor], *inputs: Tensor) -> Sequence[Tensor]:
        query_images, key_images, patch_images, boxes = inputs
        maps, features = feature_map(network.backbone, query_images)
        with torch.no_grad():
            key_network.update(network)
            key = key_network.module.branches(key_images)[1]
            pooled = network.projection(pool(maps, boxes, maps.shape[-1] / size.pixels))
        cropped = network.projection(network.backbone(patch_images))
        return network.projection(features), key, pooled.unflatten(0, patches), cropped.unflatten(0, patches)

    def ours(query: Tensor, key: Tensor, pooled: Tensor, cropped: Tensor, labels: Tensor) -> Tensor:
        contrast, distillation = losses(query, key, labels, pooled, cropped)
        queue.enqueue(key, labels)
        return contrast + _PBSD_WEIGHT * distillation

    def theirs(query: Tensor, key: Tensor, pooled: Tensor, cropped: Tensor, labels: Tensor) -> Tensor:
        nonlocal position
        past = keys.clone()  # as in MoCo: the queue moves on before the backward pass
        contrast = published.dscl(query, key, labels, past, key_labels).mean()
        distillation = published.pbsd(pooled, cropped, key, past).mean()
        keys[position : position + n], key_labels[position : position + n] = key, labels
        position = (position + n) % size.queue
        return contrast + _PBSD_WEIGHT * distillation

    corners = torch.rand(*patches, 2, device=device) * (size.pixels - pixels)
    return StepPair(
        SGD([*network.backbone.parameters(), *network.projection.parameters()], 1e-3, momentum=0.9),
        [
            size.draw_images(n, device),
            size.draw_images(n, device),
            torch.randn(n * _PATCHES, 3, pixels, pixels, device=device),
            torch.cat([corners, corners + pixels], 2),
        ],
        size.draw_labels(device),
        {
            "ltfast": Implementation(partial(forward, _patch_roi_pool), ours),
            "published": Implementation(partial(forward, _roi_align), theirs),
        },
    )


def _patch_roi_pool(maps: Tensor, boxes: Tensor, scale: float) -> Tensor:
    return patch_roi_pool(maps, boxes, spatial_scale=scale).flatten(0, 1)


def _roi_align(maps: Tensor, boxes: Tensor, scale: float) -> Tensor:
    return roi_align(maps, list(boxes), 2, scale).mean((2, 3))
