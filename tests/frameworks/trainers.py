"""Trains a model of `cases.py` with each trainer, in the way that docs/frameworks describes: the images in the given
order, and SGD with a constant rate.

Some take `resume`: with None they write no checkpoint; False trains from the start and True from the last checkpoint.
"""

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from frameworks.cases import BATCH, CASES, EPOCHS, OF_SCORES, RATE, Model, after_step, start_epoch, train_plainly
from ltfast.frameworks import compute_loss
from ltfast.losses import SeesawLoss


def compiled(model: Model, data: TensorDataset, folder: Path) -> None:
    # without code generation, which takes minutes; tests/ops/test_compile.py has it
    network, criterion = (part and torch.compile(part, backend="aot_eager") for part in model)
    train_plainly(Model(network, criterion), data)


class Columns(Dataset):
    """Images and labels by name, as Hugging Face's data sets have them."""

    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image, label = self.data[index]
        return {"input": image, "labels": label}


class WithLoss(nn.Module):
    """Returns its loss by name, as Hugging Face's models do."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.network, self.criterion = model

    def forward(self, input: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": Model(self.network, self.criterion).loss(input, labels)}


def in_model(model: Model) -> bool:
    """Whether the loss has a state or needs features, so that Hugging Face's model has to hold it."""
    return model.criterion is None or isinstance(model.criterion, SeesawLoss)


def hugging_face(
    model: Model, data: TensorDataset, folder: Path, epochs: int = EPOCHS, resume: bool | None = None
) -> None:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Epochs(TrainerCallback):
        def on_epoch_begin(self, *_: object, **__: object) -> None:
            start_epoch(model.network)

        def on_step_end(self, *_: object, **__: object) -> None:
            after_step(model.network)

    trainer = Trainer(
        model=WithLoss(model) if in_model(model) else model.network,
        args=TrainingArguments(
            output_dir=str(folder),
            num_train_epochs=epochs,
            per_device_train_batch_size=BATCH,
            max_grad_norm=0,
            train_sampling_strategy="sequential",
            remove_unused_columns=False,
            use_cpu=True,
            save_strategy="no" if resume is None else "epoch",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Columns(data),
        optimizers=constant_rate(model.network),
        compute_loss_func=None if in_model(model) else compute_loss(model.criterion),
        callbacks=[Epochs()],
    )
    trainer.train(resume_from_checkpoint=resume)


def constant_rate(network: nn.Module) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimizer = torch.optim.SGD(network.parameters(), RATE)
    return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1)


def lightning(
    model: Model,
    data: TensorDataset,
    folder: Path,
    epochs: int = EPOCHS,
    resume: bool | None = None,
    precision: str = "32",
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
        default_root_dir=folder,
    )
    checkpoint = folder / "last.ckpt"
    trainer.fit(Module(), DataLoader(data, BATCH), ckpt_path=checkpoint if resume else None)
    if resume is not None:
        trainer.save_checkpoint(checkpoint)


def accelerate(
    model: Model, data: TensorDataset, folder: Path, epochs: int = EPOCHS, resume: bool | None = None
) -> None:
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
    if resume is not None:
        accelerator.save_state(str(folder))


def timm(model: Model, data: TensorDataset, folder: Path) -> None:
    from timm.optim import create_optimizer_v2
    from timm.task import ClassificationTask

    class Task(ClassificationTask):
        """For a network that computes its own loss."""

        def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
            return {"loss": self.trainable_module(input, target)}

    kind = ClassificationTask if model.criterion else Task
    task = kind(model.network, model.criterion, device=torch.device("cpu"))
    optimizer = create_optimizer_v2(model.network, opt="momentum", lr=RATE, momentum=0.0, weight_decay=0.0)
    for _ in range(EPOCHS):
        start_epoch(model.network)
        for images, labels in DataLoader(data, BATCH):
            optimizer.zero_grad()
            task(images, labels)["loss"].backward()
            optimizer.step()
            after_step(model.network)


def mmpretrain(model: Model, data: TensorDataset, folder: Path) -> None:
    from mmengine.runner import Runner
    from mmpretrain.structures import DataSample

    import ltfast.frameworks.mmpretrain as adapter

    class Samples(Columns):
        metainfo: ClassVar[dict[str, object]] = {}

        def __getitem__(self, index: int) -> dict[str, object]:
            image, label = self.data[index]
            return {"inputs": image, "data_samples": DataSample().set_gt_label(label)}

    assert model.criterion is not None
    network, layer = model.network
    kind = "LinearClsHead" if isinstance(layer, nn.Linear) else "ltfast.CosineClsHead"
    classes, width = layer.weight.shape
    head = {"type": kind, "num_classes": classes, "in_channels": width, "loss": adapter.Loss(model.criterion)}
    runner = Runner(
        {
            "type": "ImageClassifier",
            "backbone": AsTuple(network),
            "head": {**head, "init_cfg": None},
            "data_preprocessor": {"mean": [0.0], "std": [1.0], "num_classes": classes},
        },
        str(folder),
        train_dataloader={
            "batch_size": BATCH,
            "dataset": Samples(data),
            "sampler": {"type": "DefaultSampler", "shuffle": False},
            "collate_fn": {"type": "default_collate"},
        },
        train_cfg={"by_epoch": True, "max_epochs": EPOCHS},
        optim_wrapper={"optimizer": {"type": "SGD", "lr": RATE}},
        default_hooks={"checkpoint": None, "logger": None},
        log_level="ERROR",
        default_scope="mmpretrain",
        experiment_name=folder.name,
    )
    runner.model.head.fc.load_state_dict(layer.state_dict())
    runner.train()
    layer.load_state_dict(runner.model.head.fc.state_dict())


class AsTuple(nn.Module):
    """Returns the feature maps of the stages, as MMPretrain's backbones do."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.network(images),)


TRAINERS: dict[str, Callable[[Model, TensorDataset, Path], None]] = {
    "PyTorch": compiled,
    "Hugging Face": hugging_face,
    "Lightning": lightning,
    "Accelerate": accelerate,
    "timm": timm,
    "MMPretrain": mmpretrain,
}


def cells() -> dict[tuple[str, str], str]:
    """How each trainer uses each loss: as its "loss", or inside the "model", which MMPretrain's heads do not allow."""
    found = {}
    for trainer in TRAINERS:
        for loss in CASES:
            held = loss not in OF_SCORES or (trainer == "Hugging Face" and loss == "SeesawLoss")
            if not (held and trainer == "MMPretrain"):
                found[trainer, loss] = "model" if held else "loss"
    return found


CELLS = cells()
