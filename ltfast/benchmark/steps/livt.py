"""LiVT's fine-tuning, on images that are mixed already."""

from functools import partial
from typing import Any

import torch
from timm.data import Mixup
from torch import Tensor
from torch.optim import AdamW

from ltfast.benchmark.steps.pair import Implementation, Size, StepPair
from ltfast.losses import BalancedBCELoss
from ltfast.models import make_backbone
from ltfast.ops.balanced_bce.bench import published


def pair(size: Size, device: torch.device) -> StepPair:
    network: Any = make_backbone(size.backbone, image_size=size.pixels, drop_path_rate=0.1)[0]
    network.reset_classifier(size.classes, "avg")
    network.to(device)
    loss = BalancedBCELoss(size.class_counts()).to(device)
    mix = Mixup(0.8, 1.0, label_smoothing=0.1, num_classes=size.classes)
    images, target = mix(size.draw_images(size.images, device), size.draw_labels(device))

    def forward(images: Tensor) -> tuple[Tensor]:
        return (network(images),)

    return StepPair(
        AdamW(network.parameters(), 1e-4),
        [images],
        target,
        {
            "ltfast": Implementation(forward, loss),
            "published": Implementation(forward, partial(published, bias=loss.bias)),
        },
    )
