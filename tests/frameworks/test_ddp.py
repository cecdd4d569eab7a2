"""Each loss in ``DistributedDataParallel``: two processes with half of each batch give the weights of one process."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from distributed.harness import run_processes
from frameworks.cases import BATCH, CASES, EPOCHS, RATE, Model, random_images, start_epoch, train_plainly

pytestmark = pytest.mark.slow
PROCESSES = 2


def start(name: str, seed: int) -> tuple[Model, TensorDataset]:
    """The same weights and images in each process, without noise, which processes draw separately."""
    torch.manual_seed(seed)
    model = CASES[name]()
    (model.criterion or model.network.criterion).eval()
    return model, random_images()


def train(rank: int, seed: int) -> dict[str, dict[str, Tensor]]:
    states = {}
    for name in CASES:
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
        states[name] = model.state()
    return states


@pytest.fixture(scope="module")
def runs():
    seed = torch.seed() % 2**31
    return seed, run_processes(train, PROCESSES, seed)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_give_the_weights_of_one(name, runs):
    seed, (first, second) = runs
    print(f"seed {seed}")
    model, data = start(name, seed)
    train_plainly(model, data)
    # The batches of both are the same; the queue has the images of a batch in the order of the processes.
    expected = {key: value for key, value in model.state().items() if not key.startswith("queue.")}
    for state in (first[name], second[name]):
        own = {key: value for key, value in state.items() if not key.startswith("queue.")}
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)
