"""Several processes that augment images on their devices."""

import json
from pathlib import Path

import pytest
import torch

from distributed.harness import run_processes
from ltfast.data import ArrayDataset, DataBundle
from ltfast.engine import RunSettings, report
from ltfast.engine.accelerator import make_accelerator
from ltfast.engine.checkpoint import load_checkpoint
from ltfast.engine.loop import train
from ltfast.engine.seeding import seed_everything
from ltfast.methods import METHODS, BuildContext, settings_of


def bundle():
    images = torch.randint(256, (24, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8).numpy()
    data = ArrayDataset(images, torch.arange(24) % 3, ["a", "b", "c"])
    return DataBundle(data, data, (0.5,), (0.25,), image_size=8, channels=1)


def train_both(rank, folder):
    """Train on the CPU's and the device's views."""
    report.plot_per_class = lambda *_: None  # this takes as long as the training
    values = {"epochs": 2, "batch_size": 4, "augment": "cifar"}
    data = bundle()
    for augment_on in ("cpu", "device"):
        run = RunSettings(augment_on=augment_on)
        seed_everything(run.seed)
        accelerator = make_accelerator("fp32")
        train(
            METHODS["ce"].build(settings_of("ce", values), data, BuildContext(run, rank, accelerator.num_processes)),
            run=run,
            settings={"method": "ce", **values},
            facts={"class_names": data.class_names},
            class_counts=data.class_counts,
            groups={},
            out=Path(folder) / augment_on,
            accelerator=accelerator,
        )


@pytest.mark.slow
def test_two_processes_end_with_the_same_weights(tmp_path):
    run_processes(train_both, 2, str(tmp_path))
    cpu, device = (load_checkpoint(tmp_path / name)["model"] for name in ("cpu", "device"))
    assert all(torch.equal(value, device[name]) for name, value in cpu.items())
    first, second = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("cpu", "device"))
    assert first["per_class"] == second["per_class"]
