"""Every method is evaluated on validation images while it trains, and on test images only at the end."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fixtures import fresh_accelerator, one_thread  # noqa: F401
from ltfast.data import ArrayDataset, DataBundle, class_groups
from ltfast.engine import RunSettings, loop
from ltfast.engine.accelerator import make_accelerator
from ltfast.engine.checkpoint import load_checkpoint
from ltfast.engine.seeding import seed_everything
from ltfast.errors import SettingError
from ltfast.methods import METHODS, BuildContext, settings_of

AVERAGED = ("proco", "dscl", "lift", "livt", "lpt")
COUNTS = [12, 7, 5]
GROUP_MINIMA = (10, 6)
RUNS = {
    "ce": {"epochs": 3},
    "proco": {"epochs": 3, "lr": 0.01, "augment": "basic", "contrast_augment": "basic", "feature_dim": 8,
              "hidden_dim": 8},
    "dscl": {"epochs": 1, "feature_dim": 8, "queue_size": 16, "patches": 2, "classifier_epochs": 3},
    "livt": {"epochs": 3, "warmup_epochs": 0, "pretrain_epochs": 1, "pretrain_batch_size": 8, "decoder_dim": 32,
             "decoder_depth": 1, "decoder_heads": 2},
    "lift": {"epochs": 3, "adapter": "bias", "adapter_blocks": 2, "augment": "basic"},
    "lpt": {"epochs": 3, "prompt_length": 2, "group_length": 2, "pool_size": 4, "group_blocks": 2},
    "do": {"epochs": 3, "prune_epochs": 2, "group_minima": GROUP_MINIMA, "prune": (0.5, 0.5)},
}  # fmt: skip
ENDS = {  # the epochs of the stages that are evaluated
    "ce": {"train": 3}, "proco": {"train": 3}, "dscl": {"classifier": 3}, "livt": {"finetune": 3},
    "lift": {"adapt": 3}, "lpt": {"shared": 3, "group": 3},
    "do": {"many": 3, "many_pruned": 2, "medium": 1, "medium_pruned": 2, "few": 1},
}  # fmt: skip


class Counted(ArrayDataset):
    """Notes each read of an image."""

    def __init__(self, part, labels, events):
        pixels = (
            np.random.default_rng(len(part)).integers(0, 150, (len(labels), 8, 8)) + 40 * labels.numpy()[:, None, None]
        )
        super().__init__(pixels.astype(np.uint8), labels, ["a", "b", "c"])
        self.part, self.events = part, events

    def image(self, index):
        self.events.append(self.part)
        return super().image(index)


def trained(method, out, events, *, kill_at=None, validation=True, **run):
    """Train a method; with `kill_at`, until it has made so many steps."""
    labels = torch.arange(3).repeat_interleave(torch.tensor(COUNTS))
    train, held_out, test = (
        Counted(part, values, events)
        for part, values in (("train", labels), ("validation", torch.arange(11) % 3), ("test", torch.arange(7) % 3))
    )
    bundle = DataBundle(
        train, test, (0.5,), (0.25,), image_size=8, channels=1, validation=held_out if validation else None
    )
    values = {"batch_size": 8, **RUNS[method]}
    if method in ("lift", "lpt"):
        values["init"] = str(out.parent.parent / "livt" / "whole")
    settings = RunSettings(checkpoint_minutes=0, **run)
    seed_everything(0)
    plan = METHODS[method].build(settings_of(method, values), bundle, BuildContext(settings))
    left = [kill_at]
    for stage in plan.stages:

        def after_step(after=stage.after_step):
            after()
            events.append("step")
            if left[0] is not None:
                left[0] -= 1
                if left[0] == 0:
                    raise KeyboardInterrupt

        stage.after_step = after_step
    return loop.train(
        plan,
        run=settings,
        settings={"method": method, "epochs": 3},
        facts={"class_names": ["a", "b", "c"]},
        class_counts=COUNTS,
        groups=class_groups(COUNTS, GROUP_MINIMA),
        out=out,
        accelerator=make_accelerator("fp32"),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("methods")


def check_test_images_are_last(events):
    first = events.index("test")
    assert "step" not in events[first:]
    assert "validation" not in events[first:]
    assert "step" in events[:first]
    assert events.count("test") == 7  # each image once


# in this order: lift and lpt take the encoder of livt
@pytest.mark.parametrize(
    "method", [name if name in ("ce", "proco") else pytest.param(name, marks=pytest.mark.slow) for name in RUNS]
)
def test_test_images_are_read_once_at_the_end(method, folder, monkeypatch):
    monkeypatch.setattr("ltfast.engine.report.plot_per_class", lambda *_: None)
    events, run = [], {"keep": "best", "ema": 0.9 if method in AVERAGED else None}
    out = Path(folder) / method / "whole"
    metrics = trained(method, out, events, **run)
    check_test_images_are_last(events)
    ends = metrics["epochs"]
    assert {name: end["trained"] for name, end in ends.items()} == ENDS[method]
    if method == "do":  # a pruning is completed
        assert all(ends[name]["kept"] == 2 for name in ("many_pruned", "medium_pruned"))
    # killed in the last epoch, it ends with the same weights
    steps = events.count("step")
    events, cut = [], out.with_name("cut")
    with pytest.raises(KeyboardInterrupt):
        trained(method, cut, events, **run, kill_at=steps - 1)
    assert ("average" in load_checkpoint(cut)) == (method in AVERAGED)
    again = trained(method, cut, events, **run)
    check_test_images_are_last(events)
    for name in ("top1", "per_class", "validation", "epochs"):
        assert again[name] == metrics[name]
    models = [load_checkpoint(path)["model"] for path in (out, cut)]
    assert models[0].keys() == models[1].keys()
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())


def test_an_average_of_pruned_weights_is_refused(folder):
    with pytest.raises(SettingError, match=r"^ema: expected none with method do, which prunes weights to zero"):
        trained("do", Path(folder) / "do" / "averaged", [], ema=0.9)


def test_without_validation_images_the_reads_would_be_noticed(folder, monkeypatch):
    monkeypatch.setattr("ltfast.engine.report.plot_per_class", lambda *_: None)
    events = []
    trained("ce", Path(folder) / "ce" / "plain", events, validation=False)
    with pytest.raises(AssertionError):
        check_test_images_are_last(events)


def test_a_stage_of_do_is_the_sub_model_of_its_best_epoch():
    """Weights, statistics and owners go back together."""
    from ltfast.models import SubModels

    network = SubModels(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)), 2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network(torch.randn(5, 3))
    network.prune([torch.rand(p.shape) for p in network.weights.values()], 0.5)
    network.load_state_dict(before)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all((owner == 1).all() for owner in network.owners())
