"""Each loss in ``DistributedDataParallel``: two processes with half of each batch give the weights of one process."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from distributed.harness import run_processes
from frameworks.cases import BATCH, CASES, EPOCHS, RATE, Model, after_step, random_images, start_epoch, train_plainly

pytestmark = pytest.mark.slow
PROCESSES = 2
# These depend on how a batch is split: by a mean over labels of different weights, and by a regulariser of the batch.
OF_PARTS = ("ClassBalancedLoss", "LADELoss")
# The BatchNorm of its projection has each process's own statistics; see tests/losses/test_proco_branch.py.
NAMES = [name for name in CASES if name != "ProCoBranch"]


class MeanOfParts(nn.Module):
    def __init__(self, criterion: nn.Module) -> None:
        super().__init__()
        self.criterion = criterion

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        parts = range(PROCESSES)
        return sum(self.criterion(scores[part::PROCESSES], labels[part::PROCESSES]) for part in parts) / PROCESSES


def start(name: str, seed: int) -> tuple[Model, TensorDataset]:
    """The same weights and images in each process, without noise, which processes draw separately."""
    torch.manual_seed(seed)
    model = CASES[name]()
    (model.criterion or model.network.criterion).eval()
    return model, random_images()


def train(rank: int, seed: int) -> dict[str, dict[str, Tensor]]:
    states = {}
    for name in NAMES:
        model, data = start(name, seed)
        trained = Model(nn.parallel.DistributedDataParallel(model.network), model.criterion)
        optimizer = torch.optim.SGD(model.network.parameters(), RATE)
        loader = DataLoader(data, BATCH // PROCESSES, sampler=range(rank, len(data), PROCESSES))
        for _ in range(EPOCHS):
            start_epoch(model.network)
            for images, labels in loader:
                optimizer.zero_grad()
                trained.loss(images, labels).backward()
                optimizer.step()
                after_step(model.network)
        states[name] = model.state()
    return states


@pytest.fixture(scope="module")
def runs():
    seed = torch.seed() % 2**31
    return seed, run_processes(train, PROCESSES, seed, timeout=300)


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_give_the_weights_of_one(name, runs):
    seed, (first, second) = runs
    print(f"seed {seed}")
    model, data = start(name, seed)
    train_plainly(Model(model.network, MeanOfParts(model.criterion)) if name in OF_PARTS else model, data)
    # The batches of both are the same; the queue has the images of a batch in the order of the processes.
    expected = {key: value for key, value in model.state().items() if "queue." not in key}
    for state in (first[name], second[name]):
        own = {key: value for key, value in state.items() if "queue." not in key}
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)
