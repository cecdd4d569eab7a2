"""The plain loops of `examples/` train as the methods of `ltfast train`, from the same weights, on the same batches."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ltfast.data import ArrayDataset, DataBundle, class_groups
from ltfast.engine import Plan, RunSettings
from ltfast.engine.accelerator import make_accelerator
from ltfast.engine.loop import _STEP, train
from ltfast.engine.seeding import seed_everything
from ltfast.losses import AGCLLoss, LogitAdjustedLoss, ProCoBranch, QueueContrast
from ltfast.methods import METHODS, BuildContext, settings_of
from ltfast.models import make_backbone

EXAMPLES = Path(__file__).parents[2] / "examples"
COUNTS, EPOCHS, LR = [14, 8, 5], 3, 0.02
RUN = RunSettings(seed=3)
COMMON = {"backbone": "digits_convnet", "batch_size": 6, "epochs": EPOCHS, "lr": LR}
COMMON |= {"optimizer": "momentum", "weight_decay": 0.0, "schedule": "constant"}

pytestmark = pytest.mark.usefixtures("_command_line")


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def bundle():
    labels = torch.repeat_interleave(torch.arange(len(COUNTS)), torch.tensor(COUNTS))
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 8, 8), dtype=np.uint8)
    data = ArrayDataset(images, labels, ["a", "b", "c"])
    return DataBundle(data, data, (0.5,), (0.25,), image_size=8, channels=1)


class StageBatches:
    """The batches of a stage, one epoch after the other, each seeded as the engine seeds its steps."""

    def __init__(self, stage):
        self.stage, self.epoch, self.step = stage, 0, 0

    def __iter__(self):
        for *images, labels in self.stage.batches.epoch(self.epoch, 0):
            seed_everything(RUN.seed, 0, _STEP, self.step, 0, 0)
            self.step += 1
            yield images[0] if len(images) == 1 else images, labels
        self.epoch += 1


def run_method(method, out, **values):
    """Train a method with the engine.

    Returns:
        Its first stage before the training, its first stage after it, and the loss of each step.
    """
    plans = []
    for _ in range(2):
        torch.manual_seed(0)
        settings = {**COMMON, **values}
        plans.append(METHODS[method].build(settings_of(method, settings), bundle(), BuildContext(RUN)))
    before, stage = (plan.stages[0] for plan in plans)
    losses, forward = [], stage.forward

    def recorded(batch):
        loss, logged = forward(batch)
        losses.append(loss.item())
        return loss, logged

    stage.forward = recorded
    stage.losses = list  # they would be timed, which is a step more
    train(
        Plan([stage], plans[1].test, final=plans[1].stages[-1]),
        run=RUN,
        settings={"method": method, **json.loads(json.dumps(settings))},
        facts={"class_names": ["a", "b", "c"]},
        class_counts=COUNTS,
        groups=class_groups(COUNTS, (10, 6)),
        out=out,
        accelerator=make_accelerator("fp32"),
    )
    assert len(losses) == EPOCHS * 4
    assert len(set(losses)) == len(losses)
    return before, stage, losses


def check(actual, expected, modules):
    """Losses and weights are the same bits."""
    assert actual == expected
    for mine, theirs in modules:
        state = theirs.state_dict()
        for name, value in mine.state_dict().items():
            assert torch.equal(value, state[name]), name


def test_agcl(tmp_path):
    before, after, losses = run_method("ce", tmp_path, loss="agcl")
    backbone, width = make_backbone("digits_convnet", in_chans=1, image_size=8)
    criterion = AGCLLoss(dict(enumerate(COUNTS)))
    head = criterion.head(width)
    backbone.load_state_dict(before.network.backbone.state_dict())
    head.load_state_dict(before.network.head.state_dict())
    network = nn.Sequential(backbone, head)
    found = example("agcl_loop").train(network, criterion, StageBatches(before), epochs=EPOCHS, lr=LR)
    check(found, losses, [(backbone, after.network.backbone), (head, after.network.head)])


def test_proco(tmp_path):
    options = {"feature_dim": 16, "hidden_dim": 24}
    augment = {"augment": "basic", "contrast_augment": "basic"}
    before, after, losses = run_method("proco", tmp_path, **options, **augment)
    backbone, width = make_backbone("digits_convnet", in_chans=1, image_size=8)
    classifier, branch = nn.Linear(width, len(COUNTS)), ProCoBranch(width, len(COUNTS), COUNTS, **options)
    backbone.load_state_dict(before.network.backbone.state_dict())
    classifier.load_state_dict(before.network.head.state_dict())
    branch.load_state_dict(before.branch.state_dict())
    found = example("proco_loop").train(
        backbone, classifier, branch, LogitAdjustedLoss(COUNTS), StageBatches(before), epochs=EPOCHS, lr=LR
    )
    pairs = [(backbone, after.network.backbone), (classifier, after.network.head), (branch, after.branch)]
    check(found, losses, pairs)
    assert branch.loss.past_counts.sum() == branch.loss.counts.sum() == 2 * 4 * 6  # start_epoch was called


def test_dscl(tmp_path):
    options = {"feature_dim": 16, "queue_size": 20}
    patches = {"patches": 2, "patch_size": 8, "patch_scale": (0.3, 1.0), "augment": "basic"}
    before, after, losses = run_method("dscl", tmp_path, key_momentum=0.75, **options, **patches)
    encoder, width = make_backbone("digits_convnet", in_chans=1, image_size=8)
    contrast = QueueContrast(encoder, width, len(COUNTS), momentum=0.75, **options)
    contrast.load_state_dict(before.contrast.state_dict())
    found = example("dscl_loop").train(contrast, StageBatches(before), epochs=EPOCHS, lr=LR)
    check(found, losses, [(contrast, after.contrast)])  # momentum encoder and queue too
    assert len(contrast.losses.queue) == 20
    assert not all(map(torch.equal, contrast.key_network.encoder.parameters(), encoder.parameters()))
