"""The lines that docs/frameworks/timm.md adds to timm's train.py, with its names and timm's functions. The script is
not in timm's wheel."""

import re
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_dataset, create_loader
from timm.models import create_model
from timm.optim import create_optimizer_v2
from timm.task import ClassificationTask
from torch import nn

from ltfast.losses import LogitAdjustedLoss

PAGE = Path(__file__).parent.parent.parent / "docs/frameworks/timm.md"
COUNTS = [24, 12, 4]


@pytest.fixture
def names(tmp_path):
    """What train.py has defined where the lines are added: a folder of images, of one colour per class."""
    random = np.random.default_rng(0)
    for label, count in enumerate(COUNTS):
        (tmp_path / f"train/{label}").mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 60, (32, 32, 3), dtype=np.uint8)
            pixels[..., label] += 150
            Image.fromarray(pixels).save(tmp_path / f"train/{label}/{number}.png")
    device = torch.device("cpu")
    dataset_train = create_dataset("", root=str(tmp_path), split="train", is_training=True)
    loader_train = create_loader(
        dataset_train, (3, 32, 32), 8, is_training=True, no_aug=True, num_workers=0, device=device
    )
    return {
        **{"torch": torch, "nn": nn, "device": device, "train_loss_fn": nn.CrossEntropyLoss(), "epoch": 1},
        "args": SimpleNamespace(smoothing=0.1, seed=5, num_classes=len(COUNTS), rank=0, world_size=1),
        "dataset_train": dataset_train,
        "loader_train": loader_train,
    }


def added(title):
    """The lines that the diff with this title adds."""
    (diff,) = re.findall(rf'```diff title="{title}"\n(.*?)```', PAGE.read_text(), re.DOTALL)
    return textwrap.dedent("\n".join(line[1:] for line in diff.splitlines() if line.startswith("+")))


@pytest.mark.slow
def test_loss(names):
    exec(added("loss"), names)
    criterion = names["train_loss_fn"]
    assert isinstance(criterion, LogitAdjustedLoss)
    torch.testing.assert_close(criterion.shift.exp(), torch.tensor(COUNTS) / sum(COUNTS))
    model = create_model("test_resnet", num_classes=len(COUNTS))
    task = ClassificationTask(model, criterion, device=names["device"])
    optimizer = create_optimizer_v2(model, opt="adamw", lr=3e-3)
    losses = []
    for _ in range(8):
        for images, labels in names["loader_train"]:
            loss = task(images, labels)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["test_resnet", "test_vit"])
def test_cosines(names, architecture):
    model = create_model(architecture, num_classes=len(COUNTS))
    exec(added("cosines"), {**names, "model": model})
    cosines = model(torch.randn(2, *model.default_cfg["input_size"]))
    assert cosines.shape == (2, len(COUNTS))
    assert cosines.abs().max() <= 1
    assert not any(isinstance(layer, nn.Linear) and layer.out_features == len(COUNTS) for layer in model.modules())


@pytest.mark.slow
def test_sampler(names):
    """After the lines, each epoch has its stream of the sampler."""
    seen = []
    exec(added("sampler"), names)
    for epoch in range(2):
        exec(added("epoch"), {**names, "epoch": epoch})
        seen.append(torch.cat([labels for _, labels in names["loader_train"]]))
        expected = names["labels"][list(names["sampler"])]
        torch.testing.assert_close(seen[-1], expected[: len(seen[-1])])
    assert not torch.equal(*seen)
    assert torch.cat(seen).bincount().min() > 15  # of 80; 8 in the data
