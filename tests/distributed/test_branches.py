"""`ProCoBranch` and `QueueContrast` in `DistributedDataParallel` train as one process with the global batch."""

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from distributed.harness import run_processes
from ltfast.losses import ProCoBranch, QueueContrast

COUNTS, WIDTH = [30, 10, 4], 12


def make_branch():
    branch = ProCoBranch(WIDTH, len(COUNTS), COUNTS, feature_dim=8, hidden_dim=10)
    branch.projection.layers[1] = nn.Identity()  # each process has its own BatchNorm, unless it is synchronised
    return branch


def make_contrast():
    encoder = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())
    return QueueContrast(encoder, WIDTH, len(COUNTS), feature_dim=8, queue_size=20, momentum=0.75)


def train(rank, processes, name, state, batches):
    """Two epochs. Returns the losses of this process, and the final state."""
    module = {"branch": make_branch, "contrast": make_contrast}[name]()
    module.load_state_dict(state)
    wrapped = module if processes == 1 else DistributedDataParallel(module)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(2):
        if name == "branch":
            module.start_epoch()
        for batch in batches:
            loss = wrapped(*(part.chunk(processes)[rank] for part in batch))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            if name == "contrast":
                module.after_step()
    return torch.stack(losses), module.state_dict()


def check(name, module, batches):
    state = module.state_dict()
    losses, expected = train(0, 1, name, state, batches)
    (first, one), (second, two) = run_processes(train, 2, 2, name, state, batches)
    torch.testing.assert_close((first + second) / 2, losses, rtol=1e-4, atol=1e-5)
    assert not torch.equal(first, second)
    for key, value in expected.items():
        assert torch.equal(one[key], two[key]), key
        torch.testing.assert_close(one[key], value, rtol=1e-3, atol=1e-4, msg=key)


def test_proco_branch():
    centres = torch.randn(3, WIDTH)
    batches = []
    for _ in range(3):
        labels = torch.arange(8) % 3
        batches.append((centres[labels] + torch.randn(8, WIDTH), labels))
    check("branch", make_branch(), batches)


def test_queue_contrast():
    batches = [(torch.randn(8, WIDTH), torch.randn(8, WIDTH), torch.randint(3, (8,))) for _ in range(3)]
    check("contrast", make_contrast(), batches)
