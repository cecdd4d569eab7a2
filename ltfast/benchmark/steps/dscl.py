"""The step of DSCL's contrastive stage, with a momentum encoder, a queue of its keys, and patches."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from ltfast.benchmark.cases import published_dscl
from ltfast.benchmark.steps.pair import StepPair, make_pair, own_stage, unit
from ltfast.benchmark.steps.size import Size
from ltfast.losses import MemoryQueue, QueueContrast
from ltfast.losses.queue_contrast import QueueLosses
from ltfast.methods.dscl import ContrastStage


class PublishedQueue:
    """A full queue as in MoCo, with keys and labels only. The newest keys replace the oldest.

    Args:
        queue: gives the initial keys and labels; its size is a multiple of the batch's.
    """

    def __init__(self, queue: MemoryQueue) -> None:
        self.keys, self.labels, self.position = queue.keys.clone(), queue.labels.clone(), 0

    def enqueue(self, keys: Tensor, labels: Tensor) -> None:
        place = slice(self.position, self.position + len(keys))
        self.keys[place], self.labels[place] = keys, labels
        self.position = place.stop % len(self.keys)


class PublishedQueueLosses(nn.Module):
    """The authors' losses, with the temperature, beta and queue of `QueueLosses`."""

    def __init__(self, losses: QueueLosses) -> None:
        super().__init__()
        self.temperature, self.beta = losses.contrast.temperature, losses.contrast.beta
        self.queue = PublishedQueue(losses.queue)

    def forward(self, query: Tensor, key: Tensor, labels: Tensor, pooled: Tensor, cropped: Tensor) -> Tensor:
        past = self.queue.keys.clone()  # as in MoCo, because the queue is updated before the backward pass
        contrast = published_dscl.dscl(
            query, key, labels, past, self.queue.labels, temperature=self.temperature, beta=self.beta
        )
        distillation = published_dscl.pbsd(pooled, cropped, key, past, temperature=self.temperature)
        return torch.stack([contrast.mean(), distillation.mean()])


class PublishedContrast(QueueContrast):
    """Pools patches as the authors do."""

    def pool_patches(self, maps: Tensor, boxes: Tensor, scale: float) -> Tensor:
        return roi_align(maps, list(boxes), 2, scale).mean((2, 3)).unflatten(0, boxes.shape[:2])


def pair(size: Size, device: torch.device) -> StepPair:
    values = {"queue_size": size.queue, "patch_size": size.patch_pixels}
    stage = cast(ContrastStage, own_stage("dscl", "contrast", size, device, **values))
    contrast, queue = stage.contrast, stage.contrast.losses.queue
    labels = torch.randint(size.classes, (size.queue,), device=device)
    queue.enqueue(unit(size.queue, queue.feature_dim, device), labels)
    other: Any = PublishedContrast(
        contrast.encoder,
        contrast.width,
        size.classes,
        queue_size=1,
        momentum=contrast.momentum,
        pbsd_weight=contrast.pbsd_weight,
    )
    other.projection, other.key_network = contrast.projection, contrast.key_network
    other.losses = PublishedQueueLosses(contrast.losses)
    published = ContrastStage(stage.name, stage.batches, stage.optimisation, contrast=other)
    return make_pair(stage, published, device)
