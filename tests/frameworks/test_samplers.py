"""A sampler of ``ltfast.data`` in each trainer with two processes: together they get the stream of each epoch, once."""

from collections import Counter
from functools import partial
from tempfile import TemporaryDirectory

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from distributed.harness import run_processes
from ltfast.data.samplers import make_sampler
from ltfast.frameworks import compute_loss

COUNTS = [160, 60, 20]
LABELS = torch.repeat_interleave(torch.arange(3), torch.tensor(COUNTS))
BATCH, EPOCHS, PROCESSES, SEED = 12, 2, 2, 7
NAMES = ("class_balanced", "instance", "dual")

sampler_of = partial(make_sampler, labels=LABELS, num_classes=3, seed=SEED)


class Indices(Dataset):
    """Each image is its index."""

    def __init__(self, named: bool = False) -> None:
        self.named = named

    def __len__(self) -> int:
        return len(LABELS)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor] | dict[str, Tensor]:
        image = torch.tensor([float(index)])
        return {"input": image, "labels": LABELS[index]} if self.named else (image, LABELS[index])


class Network(nn.Module):
    """Records the batches of each epoch that it is trained with."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 3)
        self.epochs: list[list[list[int]]] = []

    def forward(self, input: Tensor) -> Tensor:
        self.epochs[-1].append(input.flatten().long().tolist())
        return self.layer(input / len(LABELS))


def pytorch(rank: int, name: str) -> list[list[list[int]]]:
    network = Network()
    trained = nn.parallel.DistributedDataParallel(network)
    sampler = sampler_of(name, rank=rank, world_size=PROCESSES)
    loader = DataLoader(Indices(), BATCH, sampler=sampler)
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        network.epochs.append([])
        for images, labels in loader:
            F.cross_entropy(trained(images), labels).backward()
    return network.epochs


def hugging_face(rank: int, name: str) -> list[list[list[int]]]:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Sampled(Trainer):
        def _get_train_sampler(self, dataset: Dataset | None = None) -> torch.utils.data.Sampler:
            return sampler_of(name)

    class Epochs(TrainerCallback):
        def on_epoch_begin(self, *_: object, model: Network, **__: object) -> None:
            model.epochs.append([])

    network = Network()
    args = TrainingArguments(
        output_dir="unused",
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=BATCH,
        remove_unused_columns=False,
        use_cpu=True,
        ddp_backend="gloo",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    assert args.world_size == PROCESSES
    loss = compute_loss(nn.CrossEntropyLoss())
    Sampled(network, args, train_dataset=Indices(named=True), compute_loss_func=loss, callbacks=[Epochs()]).train()
    return network.epochs


def lightning(rank: int, name: str, split_again: bool = False) -> list[list[list[int]]]:
    from lightning.pytorch import LightningModule, Trainer

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = Network()

        def train_dataloader(self) -> DataLoader:
            sampler = sampler_of(name, rank=self.trainer.global_rank, world_size=self.trainer.world_size)
            return DataLoader(Indices(), BATCH, sampler=sampler)

        def on_train_epoch_start(self) -> None:
            self.network.epochs.append([])

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            return F.cross_entropy(self.network(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    module = Module()
    trainer = Trainer(
        use_distributed_sampler=split_again,
        max_epochs=EPOCHS,
        accelerator="cpu",
        devices=PROCESSES,
        strategy="ddp",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module)
    assert trainer.world_size == PROCESSES
    return module.network.epochs


def accelerate(rank: int, name: str) -> list[list[list[int]]]:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == PROCESSES
    network = Network()
    trained, optimizer, loader = accelerator.prepare(
        network, torch.optim.SGD(network.parameters(), 0.1), DataLoader(Indices(), BATCH, sampler=sampler_of(name))
    )
    for _ in range(EPOCHS):
        network.epochs.append([])
        for images, labels in loader:
            optimizer.zero_grad()
            accelerator.backward(F.cross_entropy(trained(images), labels))
            optimizer.step()
    return network.epochs


class Pictures(Indices):
    """Each image is a picture of one colour: its index."""

    transform = None

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((3, 1, 1), index, dtype=torch.uint8), int(LABELS[index])


def timm(rank: int, name: str) -> list[list[list[int]]]:
    from timm.data import create_loader

    sampler = sampler_of(name, rank=rank, world_size=PROCESSES)
    loader = create_loader(
        Pictures(),
        (3, 1, 1),
        BATCH,
        is_training=True,
        distributed=True,
        num_workers=0,
        mean=(0.0, 0.0, 0.0),
        std=(1 / 255, 1 / 255, 1 / 255),
        device=torch.device("cpu"),
        collate_fn=torch.utils.data.default_collate,
    )
    loader.dataset.transform = None  # the transforms would change the colours
    loader.batch_sampler.sampler = sampler
    seen = []
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        seen.append([images[:, 0, 0, 0].long().tolist() for images, _ in loader])
    return seen


def mmpretrain(rank: int, name: str) -> list[list[list[int]]]:
    from mmengine.hooks import Hook
    from mmengine.model import BaseModel
    from mmengine.runner import Runner

    class Model(BaseModel):
        def __init__(self) -> None:
            super().__init__({"type": "BaseDataPreprocessor"})
            self.network = Network()

        def forward(self, images: Tensor, labels: Tensor, mode: str) -> dict[str, Tensor]:
            assert mode == "loss"
            return {"loss": F.cross_entropy(self.network(images), labels)}

    class Epochs(Hook):
        def before_train_epoch(self, runner: Runner) -> None:
            model.network.epochs.append([])

    model = Model()
    sampler = sampler_of(name, rank=rank, world_size=PROCESSES)
    loader = {"batch_size": BATCH, "dataset": Indices(), "sampler": sampler, "collate_fn": {"type": "default_collate"}}
    with TemporaryDirectory() as folder:
        runner = Runner(
            model,
            folder,
            train_dataloader=loader,
            train_cfg={"by_epoch": True, "max_epochs": EPOCHS},
            optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.1}},
            default_hooks={"checkpoint": None, "logger": None},
            custom_hooks=[Epochs()],
            log_level="ERROR",
            default_scope="mmpretrain",
        )
        assert runner.world_size == PROCESSES
        runner.train()
    return model.network.epochs


TRAINERS = {run.__name__: run for run in (pytorch, hugging_face, lightning, accelerate, timm, mmpretrain)}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("trainer", TRAINERS)
def test_two_processes_share_the_stream(trainer, name):
    parts = run_processes(TRAINERS[trainer], PROCESSES, name, timeout=300)
    streams = []
    for epoch in range(EPOCHS):
        sampler = sampler_of(name)
        sampler.set_epoch(epoch)
        stream = list(sampler)
        own = [[index for batch in part[epoch] for index in batch] for part in parts]
        assert all(len(part) == EPOCHS for part in parts)
        assert [len(indices) for indices in own] == [len(stream) / PROCESSES] * PROCESSES
        assert Counter(own[0] + own[1]) == Counter(stream)
        assert own[0] != own[1]
        for indices in own:  # the class shares of each process
            shares = torch.bincount(LABELS[indices], minlength=3) / len(indices)
            expected = torch.bincount(LABELS[stream], minlength=3) / len(stream)
            torch.testing.assert_close(shares, expected, atol=0.12, rtol=0)
        if name == "instance":
            assert not set(own[0]) & set(own[1])
        if name == "dual":  # every second image of each batch is from the class-balanced stream
            first = [index for part in parts for batch in part[epoch] for index in batch[0::2]]
            assert Counter(first) == Counter(stream[0::2])
        streams.append(own)
    assert streams[0] != streams[1]


@pytest.mark.slow
def test_lightning_splits_a_sampler_again_unless_it_is_told_not_to():
    """As docs/frameworks/lightning.md warns. If this fails, Lightning may have become safe."""
    parts = run_processes(lightning, PROCESSES, "instance", True, timeout=300)
    assert [sum(map(len, part[0])) for part in parts] == [len(LABELS) / 4] * 2


def test_class_balanced_and_instance_streams_differ_in_their_shares():
    """The shares that the tests above compare with are those of the sampler, not of the data set."""
    balanced, instance = (torch.bincount(LABELS[list(sampler_of(name))]) / len(LABELS) for name in NAMES[:2])
    torch.testing.assert_close(balanced, torch.full((3,), 1 / 3), atol=0.12, rtol=0)
    torch.testing.assert_close(instance, torch.tensor(COUNTS) / sum(COUNTS))
