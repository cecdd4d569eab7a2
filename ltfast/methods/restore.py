"""A trained method from its checkpoint."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ltfast.data import DataBundle, load
from ltfast.engine import Plan, RunSettings
from ltfast.engine.checkpoint import CheckpointError, load_checkpoint
from ltfast.methods import METHODS, settings_of


def facts_of(bundle: DataBundle) -> dict[str, Any]:
    """What `restore` needs to know of the training data, as plain values."""
    return {
        "class_names": bundle.class_names,
        "class_counts": bundle.class_counts,
        "mean": list(bundle.mean),
        "std": list(bundle.std),
        "image_size": bundle.image_size,
        "channels": bundle.channels,
    }


def restore(
    checkpoint: Path, *, source: str | None = None, root: str | Path = "data", rank: int = 0, world_size: int = 1
) -> tuple[Plan, dict[str, Any]]:
    """The trained stages of a run, and test batches. The training images are not needed, only the test ones.

    Args:
        checkpoint: the file, or the run's folder.
        source: the data whose test images to use; None means the run's own.
        root: folder of the images, as for `ltfast.data.load`.
        rank, world_size: this process, and how many there are.

    Returns:
        The plan, and the checkpoint's `facts`, with its `settings` among them.

    Raises:
        FileNotFoundError: there is no checkpoint, or no data.
        CheckpointError: the checkpoint cannot be read.
        ValueError: the data's classes or channels are not those of the training.
    """
    saved = load_checkpoint(checkpoint)
    settings, facts = saved["settings"], saved["facts"]
    source = source or settings["data"]
    bundle = load(source, root=root)
    for name, got, expected in (
        ("classes", bundle.num_classes, len(facts["class_names"])),
        ("channels", bundle.channels, facts["channels"]),
    ):
        if got != expected:
            raise ValueError(f"data: expected {expected} {name}, as in the training, got {got} in {source}")

    # a stand-in with the training's class counts: building a method asks for these, never for an image
    counts = torch.tensor(facts["class_counts"])
    train = bundle.test.subset(torch.zeros(int(counts.sum()), dtype=torch.int64))
    train.labels = torch.repeat_interleave(torch.arange(len(counts)), counts)
    bundle = replace(bundle, train=train, mean=tuple(facts["mean"]), std=tuple(facts["std"]))

    method = settings["method"]
    names = {field.name for field in fields(METHODS[method].settings)} if method in METHODS else set()
    chosen = settings_of(method, {name: value for name, value in settings.items() if name in names})
    chosen = replace(chosen, image_size=chosen.image_size or facts["image_size"], pretrained=False)
    run = RunSettings(seed=settings["seed"])
    plan = METHODS[method].build(chosen, bundle, run=run, rank=rank, world_size=world_size)
    try:
        nn.ModuleList(plan.stages).load_state_dict(saved["model"])
    except RuntimeError as error:
        raise CheckpointError(f"checkpoint {checkpoint} does not fit this version's model: {error}") from error
    return plan, {**facts, "settings": settings}
