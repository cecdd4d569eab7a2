"""Each loss in a small network, as a script of one's own would use it; and the plain loop that trains it."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import NamedTuple

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from ltfast import losses
from ltfast.models import CosineClassifier

COUNTS = [16, 10, 6, 4, 4]
CLASSES, WIDTH, BATCH, EPOCHS, RATE = len(COUNTS), 16, 8, 2, 0.1


def random_images(count: int = sum(COUNTS)) -> TensorDataset:
    labels = torch.repeat_interleave(torch.arange(CLASSES), torch.tensor(COUNTS))[torch.randperm(sum(COUNTS))]
    return TensorDataset(torch.randn(sum(COUNTS), 1, 8, 8)[:count], labels[:count])


def backbone() -> VisionTransformer:
    return VisionTransformer(
        img_size=8, patch_size=4, in_chans=1, num_classes=0, embed_dim=WIDTH, depth=1, num_heads=2, global_pool="avg"
    )


class Model(NamedTuple):
    """What is trained: a network of scores and its criterion, or a network that returns its loss, without criterion."""

    network: nn.Module
    criterion: nn.Module | None

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        if self.criterion is None:
            return self.network(images, labels)
        return self.criterion(self.network(images), labels)

    def state(self) -> dict[str, Tensor]:
        own = {} if self.criterion is None else self.criterion.state_dict(prefix="criterion.")
        return {name: value.clone() for name, value in {**self.network.state_dict(), **own}.items()}


class Seeds:
    """A hook that seeds each call of a loss, so that noise is the same however often a trainer draws numbers."""

    def __init__(self) -> None:
        self.call = 0

    def __call__(self, *_: object) -> None:
        torch.manual_seed(self.call)
        self.call += 1


def of_scores(make: Callable[[], nn.Module], head: Callable[..., nn.Module] = nn.Linear) -> Model:
    criterion = make()
    criterion.register_forward_pre_hook(Seeds())
    return Model(nn.Sequential(backbone(), head(WIDTH, CLASSES)), criterion)


class LinearNetwork(nn.Module):
    def __init__(self, make: Callable[[], nn.Module], bias: bool = True) -> None:
        super().__init__()
        self.backbone, self.layer, self.criterion = backbone(), nn.Linear(WIDTH, CLASSES, bias=bias), make()
        self.criterion.register_forward_pre_hook(Seeds())

    def forward(self, input: Tensor, labels: Tensor) -> Tensor:
        return self.criterion(self.backbone(input), self.layer.weight, self.layer.bias, labels)


class ProCoNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.layer, self.project = backbone(), nn.Linear(WIDTH, CLASSES), nn.Linear(WIDTH, 8)
        self.criterion = losses.LogitAdjustedLoss(COUNTS)
        self.proco = losses.ProCoLoss(CLASSES, 8, class_counts=COUNTS)

    def start_epoch(self) -> None:
        self.proco.start_epoch()

    def forward(self, input: Tensor, labels: Tensor) -> Tensor:
        features = self.backbone(input)
        projected = F.normalize(self.project(features), dim=1)
        if self.training:
            self.proco.update(projected.detach(), labels)
        return self.criterion(self.layer(features), labels) + self.proco(projected, labels)


class BranchNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.layer = backbone(), nn.Linear(WIDTH, CLASSES)
        self.criterion = losses.LogitAdjustedLoss(COUNTS)
        self.branch = losses.ProCoBranch(WIDTH, CLASSES, COUNTS, feature_dim=8, hidden_dim=12)

    def start_epoch(self) -> None:
        self.branch.start_epoch()

    def forward(self, input: Tensor, labels: Tensor) -> Tensor:
        features = self.backbone(input)
        return self.criterion(self.layer(features), labels) + self.branch(features, labels)


class ContrastNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.contrast = losses.QueueContrast(
            backbone(), WIDTH, CLASSES, feature_dim=8, queue_size=24, momentum=0.9, pbsd_weight=0.0
        )
        self.criterion = self.contrast.losses

    def after_step(self) -> None:
        self.contrast.after_step()

    def forward(self, input: Tensor, labels: Tensor) -> Tensor:
        return self.contrast(input, input.flip(-1), labels)


class QueueNetwork(nn.Module):
    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.encoder = nn.Sequential(backbone(), nn.Linear(WIDTH, 8))
        self.key_encoder = deepcopy(self.encoder).requires_grad_(False)
        self.queue = losses.MemoryQueue(8, 24, num_classes=CLASSES)
        self.criterion = make()

    def forward(self, input: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            for key, own in zip(self.key_encoder.parameters(), self.encoder.parameters(), strict=True):
                key.lerp_(own, 0.1)
            key = F.normalize(self.key_encoder(input.flip(-1)), dim=1)
        loss = self.contrast(input, key, labels)
        if self.training:
            self.queue.enqueue(key, labels)
        return loss

    def contrast(self, images: Tensor, key: Tensor, labels: Tensor) -> Tensor:
        return self.criterion(F.normalize(self.encoder(images), dim=1), key, labels, self.queue)


class PatchNetwork(QueueNetwork):
    def contrast(self, images: Tensor, key: Tensor, labels: Tensor) -> Tensor:
        pooled, cropped = (self.patches(view) for view in (images, images.flip(-2)))
        return self.criterion(pooled, cropped, key, self.queue)

    def patches(self, images: Tensor) -> Tensor:
        network, project = self.encoder
        return F.normalize(project(network.fc_norm(network.forward_features(images)[:, 1:])), dim=-1)


def whole(make: Callable[[], nn.Module]) -> Model:
    return Model(make(), None)


def linear(make: Callable[[], nn.Module], bias: bool = True) -> Callable[[], Model]:
    return partial(whole, partial(LinearNetwork, make, bias))


L = losses
OF_SCORES = {
    "AGCLLoss": partial(of_scores, partial(L.AGCLLoss, COUNTS), CosineClassifier),
    "BalancedBCELoss": partial(of_scores, partial(L.BalancedBCELoss, COUNTS)),
    "BalancedSoftmaxLoss": partial(of_scores, partial(L.BalancedSoftmaxLoss, COUNTS)),
    "ClassBalancedLoss": partial(of_scores, partial(L.ClassBalancedLoss, COUNTS, beta=0.9)),
    "CompensationLoss": partial(of_scores, partial(L.CompensationLoss, COUNTS, 3)),
    "FocalLoss": partial(of_scores, partial(L.FocalLoss, COUNTS)),
    "GCLLoss": partial(of_scores, partial(L.GCLLoss, COUNTS), CosineClassifier),
    "LADELoss": partial(of_scores, partial(L.LADELoss, COUNTS)),
    "LDAMLoss": partial(of_scores, partial(L.LDAMLoss, COUNTS), CosineClassifier),
    "LogitAdjustedLoss": partial(of_scores, partial(L.LogitAdjustedLoss, COUNTS)),
    "SeesawLoss": partial(of_scores, partial(L.SeesawLoss, COUNTS)),
    "VSLoss": partial(of_scores, partial(L.VSLoss, COUNTS)),
}
OF_FEATURES = {
    "DSCLLoss": partial(whole, partial(QueueNetwork, L.DSCLLoss)),
    "LinearAGCLLoss": linear(partial(L.LinearAGCLLoss, COUNTS), bias=False),
    "LinearBalancedBCELoss": linear(partial(L.LinearBalancedBCELoss, COUNTS)),
    "LinearCompensationLoss": linear(partial(L.LinearCompensationLoss, COUNTS, 3)),
    "LinearCrossEntropyLoss": linear(L.LinearCrossEntropyLoss),
    "LinearLogitAdjustedLoss": linear(partial(L.LinearLogitAdjustedLoss, COUNTS)),
    "PBSDLoss": partial(whole, partial(PatchNetwork, L.PBSDLoss)),
    "ProCoBranch": partial(whole, BranchNetwork),
    "ProCoLoss": partial(whole, ProCoNetwork),
    "QueueContrast": partial(whole, ContrastNetwork),
    "SupConQueueLoss": partial(whole, partial(QueueNetwork, L.SupConQueueLoss)),
}
CASES: dict[str, Callable[[], Model]] = {**OF_SCORES, **OF_FEATURES}


def start_epoch(network: nn.Module) -> None:
    if hasattr(network, "start_epoch"):
        network.start_epoch()


def after_step(network: nn.Module) -> None:
    if hasattr(network, "after_step"):
        network.after_step()


def train_plainly(model: Model, data: TensorDataset) -> None:
    optimizer = torch.optim.SGD(model.network.parameters(), RATE)
    for _ in range(EPOCHS):
        start_epoch(model.network)
        for images, labels in DataLoader(data, BATCH):
            optimizer.zero_grad()
            model.loss(images, labels).backward()
            optimizer.step()
            after_step(model.network)
