"""The step of LPT's second phase, with a loss for each half of the batch."""

from copy import copy
from functools import partial
from typing import Any, cast

import torch

from ltfast.benchmark.cases.models import published_features
from ltfast.benchmark.steps.pair import PublishedLoss, StepPair, make_pair, own_stage
from ltfast.benchmark.steps.size import Size
from ltfast.methods.lpt import GroupPromptStage
from ltfast.ops.agcl.bench import published


def pair(size: Size, device: torch.device) -> StepPair:
    stage = cast(GroupPromptStage, own_stage("lpt", "group", size, device))
    network: Any = copy(stage.network)  # the same modules, with the published forward pass
    network.grouped_features = partial(published_features, stage.network)
    halves = {}
    for name in ("balanced", "instance"):
        loss: Any = getattr(stage, name)
        halves[name] = PublishedLoss(
            partial(
                published,
                rarity=loss.class_noise,  # it includes the factor noise_mul
                noise_mul=1.0,
                gamma_pos=loss.gamma_pos,
                gamma_neg=loss.gamma_neg,
            )
        )
    return make_pair(
        stage,
        GroupPromptStage(
            stage.name,
            stage.batches,
            stage.optimisation,
            network=network,
            balanced=halves["balanced"],
            instance=halves["instance"],
            eta=stage.eta,
            first=stage.first,
        ),
        device,
    )
