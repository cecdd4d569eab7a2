"""LPT's second phase; half of a batch for each loss."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.optim import SGD

from ltfast.benchmark.cases.models import published_phase
from ltfast.benchmark.steps.pair import Implementation, Size, StepPair
from ltfast.losses import AGCLLoss
from ltfast.models import PromptedClassifier
from ltfast.ops.agcl.bench import published

_ETA = 0.5  # weight of the half that is sampled as the data are


def pair(size: Size, device: torch.device) -> StepPair:
    counts = size.class_counts()
    network = PromptedClassifier(size.backbone, size.classes, image_size=size.pixels).to(device)
    network.transformer.eval().requires_grad_(False)
    balanced = AGCLLoss(counts).to(device)
    instance = AGCLLoss(counts, gamma_pos=0.5, gamma_neg=8.0).to(device)
    agcl = partial(published, rarity=balanced.class_noise, noise_mul=1.0)  # class_noise has the factor already
    return StepPair(
        SGD([*network.pool.parameters(), *network.head.parameters()], 1e-3, momentum=0.9),
        [size.draw_images(size.images, device)],
        size.draw_labels(device),
        {
            "ltfast": Implementation(network.grouped, partial(_loss, balanced, instance)),
            "published": Implementation(
                partial(published_phase, network),
                partial(_loss, agcl, partial(agcl, gamma_pos=0.5, gamma_neg=8.0)),
            ),
        },
    )


def _loss(
    balanced: Callable[..., Tensor],
    instance: Callable[..., Tensor],
    scores: Tensor,
    indices: Tensor,
    cosines: Tensor,
    labels: Tensor,
) -> Tensor:
    of_halves = balanced(scores[0::2], labels[0::2]) + _ETA * instance(scores[1::2], labels[1::2])
    return of_halves + 1 - cosines.mean()
