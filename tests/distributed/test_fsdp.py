"""Each loss of a network with sharded parameters equals that of one process with the global batch."""

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn import functional as F

from distributed.harness import run_processes
from ltfast.losses import (
    AGCLLoss,
    BalancedBCELoss,
    BalancedSoftmaxLoss,
    CompensationLoss,
    DSCLLoss,
    FocalLoss,
    GCLLoss,
    LDAMLoss,
    LogitAdjustedLoss,
    MemoryQueue,
    PBSDLoss,
    ProCoLoss,
    SeesawLoss,
    SupConQueueLoss,
    VSLoss,
)

COUNTS = [50, 20, 5]
WIDTH = 8


class Scores(nn.Module):
    """A network whose loss takes class scores."""

    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def forward(self, network, images, labels):
        return self.loss(network(images)[:, : len(COUNTS)], labels)


class Statistics(nn.Module):
    """A network with ProCo's loss, which is computed after the update."""

    def __init__(self):
        super().__init__()
        self.loss = ProCoLoss(len(COUNTS), WIDTH, class_counts=COUNTS)

    def forward(self, network, images, labels):
        features = F.normalize(network(images))
        self.loss.update(features.detach(), labels)
        return self.loss(features, labels)


class Queued(nn.Module):
    """A network with a contrastive loss, a queue, and the distillation of patches."""

    def __init__(self, loss):
        super().__init__()
        self.contrast, self.distillation = loss, PBSDLoss()
        self.queue = MemoryQueue(WIDTH, 9, num_classes=len(COUNTS), dtype=torch.float64)

    def forward(self, network, images, labels):
        query = F.normalize(network(images))
        key, pooled = F.normalize(images), F.normalize(images[:, None].flip(2), dim=-1)
        total = self.contrast(query, key, labels, self.queue)
        total = total + self.distillation(pooled, query[:, None], key, self.queue)
        self.queue.enqueue(key, labels)
        return total


LOSSES = {
    "agcl": lambda: Scores(AGCLLoss(COUNTS, noise_mul=0.0)),
    "balanced_bce": lambda: Scores(BalancedBCELoss(COUNTS)),
    "logit_adjusted": lambda: Scores(LogitAdjustedLoss(COUNTS)),
    "compensation": lambda: Scores(CompensationLoss(COUNTS, 3)),
    "ldam": lambda: Scores(LDAMLoss(COUNTS)),
    "balanced_softmax": lambda: Scores(BalancedSoftmaxLoss(COUNTS)),
    "focal": lambda: Scores(FocalLoss(COUNTS)),
    "gcl": lambda: Scores(GCLLoss(COUNTS, noise_mul=0.0)),
    "seesaw": lambda: Scores(SeesawLoss(COUNTS)),
    "vs": lambda: Scores(VSLoss(COUNTS)),
    "proco": Statistics,
    "dscl": lambda: Queued(DSCLLoss()),
    "supcon": lambda: Queued(SupConQueueLoss()),
}


def make_network(state):
    network = nn.Sequential(nn.Linear(WIDTH, 16), nn.GELU(), nn.Linear(16, WIDTH)).double()
    network.load_state_dict(state)
    return network


def steps(rank, processes, wrapper, state, batches):
    """For each loss, the losses of two steps of SGD and the weights after them, which depend on the gradients."""
    results = {}
    for name, make in LOSSES.items():
        network = make_network(state)
        if wrapper == "fully_shard":
            for layer in network:
                fully_shard(layer)
            fully_shard(network)
        elif wrapper == "FullyShardedDataParallel":
            network = FullyShardedDataParallel(network, device_id=torch.device("cpu"), use_orig_params=True)
        optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
        loss, losses = make(), []
        for images, labels in batches:
            value = loss(network, images[rank::processes], labels[rank::processes])
            value.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(value.detach())
        if wrapper == "FullyShardedDataParallel":
            with FullyShardedDataParallel.summon_full_params(network):
                weights = [p.detach().clone() for p in network.parameters()]
        else:
            weights = [p.full_tensor() if wrapper else p.detach() for p in network.parameters()]
        results[name] = torch.stack(losses), weights
    return results


@pytest.mark.parametrize("wrapper", ["fully_shard", "FullyShardedDataParallel"])
def test_sharded_network(wrapper):
    state = nn.Sequential(nn.Linear(WIDTH, 16), nn.GELU(), nn.Linear(16, WIDTH)).double().state_dict()
    batches = [(torch.randn(6, WIDTH, dtype=torch.float64), torch.randint(3, (6,))) for _ in range(2)]
    whole = steps(0, 1, None, state, batches)
    one, two = run_processes(steps, 2, 2, wrapper, state, batches)
    for name, (losses, weights) in whole.items():
        close = {"rtol": 1e-6, "atol": 1e-6} if name == "proco" else {}  # the statistics are float32
        torch.testing.assert_close((one[name][0] + two[name][0]) / 2, losses, **close, msg=name)
        torch.testing.assert_close(one[name][1], weights, **close, msg=name)
