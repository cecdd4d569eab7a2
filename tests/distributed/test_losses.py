"""The losses that communicate between processes equal those of the global batch."""

import torch
from torch.nn import functional as F

from distributed.harness import run_processes
from ltfast.losses import DSCLLoss, MemoryQueue, PBSDLoss, ProCoLoss
from vectors import unit


def contrast(rank, processes, batches):
    """For each batch, the loss and the gradient of this process's queries; and the final queue."""
    queue = MemoryQueue(8, 20, num_classes=3, dtype=torch.float64)
    results = []
    for batch in batches:
        query, key, cropped, pooled, labels = (x.chunk(processes)[rank] for x in batch)
        query.requires_grad_()
        loss = DSCLLoss()(query, key, labels, queue) + PBSDLoss()(pooled, cropped, key, queue)
        loss.backward()
        queue.enqueue(key, labels)
        results.append((loss.detach(), query.grad / processes))  # DistributedDataParallel averages
    return results, queue.state_dict()


def test_contrastive_losses_and_the_queue():
    batches = [(unit(6, 8), unit(6, 8), unit(6, 2, 8), unit(6, 2, 8), torch.randint(3, (6,))) for _ in range(5)]
    (whole, state), (one, first), (two, second) = contrast(0, 1, batches), *run_processes(contrast, 2, 2, batches)
    for (loss, gradient), half, other in zip(whole, one, two, strict=True):
        torch.testing.assert_close((half[0] + other[0]) / 2, loss)
        torch.testing.assert_close(torch.cat([half[1], other[1]]), gradient)
    for name, value in state.items():
        assert torch.equal(first[name], value)
        assert torch.equal(second[name], value)


def statistics(rank, processes, batches):
    torch.manual_seed(100 + rank)
    loss = ProCoLoss(9, 16)
    for step, (features, labels) in enumerate(batches):
        if step == 2:
            loss.start_epoch()
        loss.update(features[rank::processes], labels[rank::processes])
    return loss.state_dict()


def test_statistics_of_proco():
    centres = unit(9, 16, dtype=torch.float32)
    batches = []
    for rows in range(11, 15):  # not multiples of the number of processes
        labels = torch.randint(7, (rows,))  # two of 9 classes have no samples
        batches.append((F.normalize(centres[labels] + torch.randn(rows, 16) / 4), labels))
    one, two = run_processes(statistics, 2, 2, batches)
    for name, value in statistics(0, 1, batches).items():
        assert torch.equal(one[name], two[name])
        torch.testing.assert_close(one[name], value, rtol=1e-4, atol=1e-5, msg=name)
