"""The step of ProCo: logit-adjusted cross-entropy of one view, and the contrastive loss of two more."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltfast.benchmark.cases.published_proco import Baseline
from ltfast.benchmark.steps.pair import PublishedLoss, StepPair, make_pair, own_stage, unit
from ltfast.benchmark.steps.size import Size
from ltfast.losses import ProCoBranch, ProCoLoss
from ltfast.methods.proco import ProCoStage

_SEEN = 4  # features of each class before the first step; the authors' recurrence needs more than one


class PublishedProCo(nn.Module):
    """The authors' contrastive loss.

    Args:
        loss: gives the initial statistics, the temperature and the class prior.
    """

    def __init__(self, loss: ProCoLoss) -> None:
        super().__init__()
        self.log_prior: Any = loss.log_prior
        self.baseline = Baseline(loss.num_classes, loss.feature_dim, loss.temperature)
        self.baseline.means = [loss.sums / loss.counts[:, None]] * 2
        self.baseline.counts = [loss.counts.float()] * 2

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        self.baseline.update(features.detach(), labels)
        return F.cross_entropy(self.baseline.logits(features) + self.log_prior, labels)


def pair(size: Size, device: torch.device) -> StepPair:
    stage = cast(ProCoStage, own_stage("proco", "train", size, device))
    loss = stage.branch.loss
    classes = torch.arange(loss.num_classes, device=device)
    loss.update(unit(_SEEN * len(classes), loss.feature_dim, device), classes.repeat(_SEEN))
    branch: Any = ProCoBranch(stage.branch.width, loss.num_classes, feature_dim=loss.feature_dim)
    branch.projection, branch.loss = stage.branch.projection, PublishedProCo(loss)
    published_loss: Any = PublishedLoss(lambda scores, labels: F.cross_entropy(scores + loss.log_prior, labels))
    published = ProCoStage(
        stage.name,
        stage.batches,
        stage.optimisation,
        network=stage.network,
        classifier_loss=published_loss,
        branch=branch,
        contrast_weight=stage.contrast_weight,
        scale=stage.scale,
    )
    return make_pair(stage, published, device)
