"""A training that is stopped after its first epoch and goes on from the checkpoint ends as one that is not: the
checkpoints contain queues, class statistics and momentum encoders."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from frameworks.cases import BATCH, CASES, RATE, Model, after_step, random_images, start_epoch
from frameworks.trainers import hugging_face

pytestmark = pytest.mark.slow


def lightning(
    model: Model, data: TensorDataset, folder: Path, epochs: int, resume: bool, precision: str = "32"
) -> None:
    from lightning.pytorch import LightningModule, Trainer

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.criterion = model

        def on_train_epoch_start(self) -> None:
            start_epoch(self.network)

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            loss = model.loss(*batch)
            assert loss.dtype == torch.float32
            return loss

        def on_train_batch_end(self, *_: object) -> None:
            after_step(self.network)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), RATE)

    trainer = Trainer(
        max_epochs=epochs,
        precision=precision,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), DataLoader(data, BATCH), ckpt_path=folder / "last.ckpt" if resume else None)
    trainer.save_checkpoint(folder / "last.ckpt")


def lightning_bf16(model: Model, data: TensorDataset, folder: Path, epochs: int, resume: bool) -> None:
    lightning(model, data, folder, epochs, resume, "bf16-mixed")


def accelerate(model: Model, data: TensorDataset, folder: Path, epochs: int, resume: bool) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    network, optimizer, loader = accelerator.prepare(
        model.network, torch.optim.SGD(model.network.parameters(), RATE), DataLoader(data, BATCH)
    )
    prepared = Model(network, model.criterion and model.criterion.to(accelerator.device))
    if model.criterion is not None:
        accelerator.register_for_checkpointing(model.criterion)
    if resume:
        accelerator.load_state(str(folder))
    for _ in range(1 if resume else 0, epochs):
        start_epoch(model.network)
        for images, labels in loader:
            optimizer.zero_grad()
            accelerator.backward(prepared.loss(images, labels))
            optimizer.step()
            after_step(model.network)
    accelerator.save_state(str(folder))


TRAINERS: dict[str, Callable[..., None]] = {
    "Lightning": lightning,
    "Lightning, bf16-mixed": lightning_bf16,
    "Hugging Face": hugging_face,
    "Accelerate": accelerate,
}


@pytest.mark.parametrize("loss", ["LogitAdjustedLoss", "AGCLLoss", "SeesawLoss", "ProCoLoss", "DSCLLoss"])
@pytest.mark.parametrize("trainer", TRAINERS)
def test_resumed_training(trainer, loss, tmp_path):
    train, data = TRAINERS[trainer], random_images()
    whole = CASES[loss]()
    first, second = deepcopy(whole), deepcopy(whole)
    train(whole, data, tmp_path / "whole", 2, False)
    train(first, data, tmp_path / "parts", 1, False)
    if second.criterion is not None:  # the noise of the second epoch, not of the first again
        hook = next(iter(second.criterion._forward_pre_hooks.values()))
        hook.call = -(-len(data) // BATCH)
    train(second, data, tmp_path / "parts", 2, True)
    expected = whole.state()
    assert any(not torch.equal(value, expected[name]) for name, value in first.state().items())
    torch.testing.assert_close(second.state(), expected, rtol=1e-5, atol=1e-6)
    if loss == "SeesawLoss":
        assert second.criterion.cum_samples.sum() == 2 * len(data)
    if loss == "DSCLLoss":
        assert second.network.queue.filled == 24
    if loss == "ProCoLoss":
        assert second.network.proco.past_counts.sum() == len(data)
