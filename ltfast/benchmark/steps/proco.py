"""ProCo: logit-adjusted cross-entropy of one view, and the contrastive loss of two more."""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import SGD

from ltfast.benchmark.cases.published_proco import Baseline
from ltfast.benchmark.steps.pair import FEATURE_DIM, Implementation, Size, StepPair, unit
from ltfast.losses import LogitAdjustedLoss, ProCoLoss
from ltfast.methods.proco import UpdatedProCoLoss
from ltfast.models import TwoBranchClassifier

_SEEN = 4  # features of each class, before the first step: the authors' recurrence is for more than one


def pair(size: Size, device: torch.device) -> StepPair:
    counts, n = size.class_counts(), size.images
    log_prior = (counts / counts.sum()).log().to(device)
    network = TwoBranchClassifier(size.backbone, size.classes, feature_dim=FEATURE_DIM, image_size=size.pixels)
    network.to(device)
    classifier_loss = LogitAdjustedLoss(counts).to(device)
    proco = ProCoLoss(size.classes, FEATURE_DIM, class_counts=counts).to(device)
    contrast_loss = UpdatedProCoLoss(proco)
    proco.update(unit(_SEEN * size.classes, device), torch.arange(size.classes, device=device).repeat(_SEEN))
    baseline = Baseline(size.classes, FEATURE_DIM)
    baseline.means, baseline.counts = [proco.sums / _SEEN] * 2, [proco.counts.float()] * 2

    def ours(scores: Tensor, features: Tensor, labels: Tensor) -> Tensor:
        return classifier_loss(scores[:n], labels) + contrast_loss(features[n:], labels.repeat(2))

    def theirs(scores: Tensor, features: Tensor, labels: Tensor) -> Tensor:
        views, both = features[n:], labels.repeat(2)
        baseline.update(views.detach(), both)
        contrast = F.cross_entropy(baseline.logits(views) + log_prior, both)
        return F.cross_entropy(scores[:n] + log_prior, labels) + contrast

    return StepPair(
        SGD(network.parameters(), 1e-3, momentum=0.9),
        [size.draw_images(3 * n, device)],
        size.draw_labels(device),
        {"ltfast": Implementation(network.branches, ours), "published": Implementation(network.branches, theirs)},
    )
