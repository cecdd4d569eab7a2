"""The step of LiVT's fine-tuning, on mixed images."""

from functools import partial
from typing import Any, cast

import torch

from ltfast.benchmark.steps.pair import PublishedLoss, StepPair, make_pair, own_stage
from ltfast.benchmark.steps.size import Size
from ltfast.methods.livt import FineTuningStage
from ltfast.ops.balanced_bce.bench import published as published_bce


def pair(size: Size, device: torch.device) -> StepPair:
    stage = cast(FineTuningStage, own_stage("livt", "finetune", size, device, pretrain_epochs=0, warmup_epochs=0))
    loss: Any = stage.loss
    published = FineTuningStage(
        stage.name,
        stage.batches,
        stage.optimisation,
        network=stage.network,
        loss=PublishedLoss(partial(published_bce, bias=loss.bias)),
        mix=stage.mix,
        label_smoothing=stage.label_smoothing,
        layer_decay=stage.layer_decay,
    )
    return make_pair(stage, published, device)
