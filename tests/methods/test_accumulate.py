"""`--accumulate K` with batches of B / K images trains as one batch of B: what is a mean over images is the same up to
rounding, and what is not (contrast within a batch) is the same in its state."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from ltfast.data import class_groups
from ltfast.data.transforms import NormalizedTensor
from ltfast.engine import Plan, RunSettings
from ltfast.engine.accelerator import make_accelerator
from ltfast.engine.checkpoint import load_checkpoint
from ltfast.engine.loop import train
from ltfast.engine.seeding import seed_everything
from ltfast.methods import METHODS, BuildContext, decoupled_optimisation, settings_of
from methods.conftest import tiny_bundle

COUNTS = (12, 7, 5)  # three whole batches of 8
IMAGES = 8  # an optimiser step
MINIMA = (10, 6)
RUNS = {
    "ce": {"loss": "balanced_bce", "sampler": "class_balanced"},
    "ce agcl": {"loss": "agcl"},
    "ce fused": {"loss": "logit_adjusted"},
    "do": {"epochs": 1, "prune_epochs": 1, "group_minima": MINIMA},
    "lift": {"augment": "basic", "adapter_width": 2},
    "livt": {"warmup_epochs": 0, "drop_path": 0.0, "mixup": 0.0, "cutmix": 0.0, "pretrain_epochs": 1,
             "decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2},
    "lpt": {"epochs": 1, "prompt_length": 2, "group_length": 2, "pool_size": 4, "group_blocks": 2},
    "proco": {"lr": 0.01, "augment": "basic", "contrast_augment": "basic", "feature_dim": 16, "hidden_dim": 24},
    "dscl": {"lr": 0.03, "feature_dim": 16, "queue_size": 20, "patches": 2, "key_momentum": 0.9,
             "classifier_epochs": 1},
}  # fmt: skip

pytestmark = pytest.mark.usefixtures("_command_line")


@pytest.fixture(autouse=True)
def _exact(monkeypatch):
    """Float64, BatchNorm without the statistics of a batch, and images in the order of their draws."""
    to_float32 = NormalizedTensor.__call__
    monkeypatch.setattr(NormalizedTensor, "__call__", lambda self, image: to_float32(self, image).double())
    monkeypatch.setattr(nn.modules.batchnorm._BatchNorm, "train", lambda self, mode=True: nn.Module.train(self, False))
    monkeypatch.setattr(decoupled_optimisation, "CANDIDATES", (0.0, 0.3, 0.6, 0.9))


def make_plan(name, accumulate, **values):
    """Without what each batch draws for itself: A-GCL's noise, masks, which become a function of the image."""
    method = name.split()[0]
    size = IMAGES // accumulate
    values = {"epochs": 2, "batch_size": size, **RUNS[name], **values}
    values |= {"livt": {"pretrain_batch_size": size}, "dscl": {"classifier_batch_size": size}}.get(method, {})
    seed_everything(0)
    torch.set_default_dtype(torch.float64)
    fused = "on" if name.endswith("fused") else "off"
    context = BuildContext(RunSettings(accumulate=accumulate, fused_classifier=fused))
    try:
        plan = METHODS[method].build(settings_of(method, values), tiny_bundle(COUNTS), context)
    finally:
        torch.set_default_dtype(torch.float32)
    for module in nn.ModuleList(plan.stages).modules():
        if hasattr(module, "noisy"):
            module.noisy = False
        if hasattr(module, "mask_token"):
            module.draw = lambda images, masked=module.masked: (
                (order := images.unfold(2, 2, 2).unfold(3, 2, 2).sum((1, 4, 5)).flatten(1).argsort(1))[:, masked:],
                order[:, :masked],
            )
    if plan.adapted is not None:
        plan.stages[0].initial = None  # new weights will do
    for stage in plan.stages:
        stage.losses = list
    return plan


def run(plan, accumulate, out):
    """The weights and buffers that a run ends with."""
    train(
        plan,
        run=RunSettings(accumulate=accumulate),
        settings={},
        facts={"class_names": list("abc")},
        class_counts=COUNTS,
        groups=class_groups(COUNTS, MINIMA),
        out=out / str(accumulate),
        accelerator=make_accelerator("fp32"),
    )
    return load_checkpoint(out / str(accumulate))["model"]


def close(actual, expected, tolerance=1e-9):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        error = (actual[name].double() - value.double()).abs().max() if value.numel() else 0.0
        assert error <= tolerance * max(1.0, float(value.abs().max())), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "accumulate"),
    [("ce", 2), ("ce", 8), ("ce agcl", 4), ("ce fused", 4), ("do", 4), ("lift", 4), ("livt", 4), ("lpt", 4)],
)
def test_batches_train_as_one_of_all_their_images(name, accumulate, tmp_path):
    expected = run(make_plan(name, 1), 1, tmp_path / "one")
    close(run(make_plan(name, accumulate), accumulate, tmp_path), expected)


def test_dscl_classifiers_train_as_one(tmp_path):
    plans = {number: make_plan("dscl", number) for number in (1, 4)}
    one, several = (run(Plan(plan.stages[1:], plan.test), number, tmp_path) for number, plan in plans.items())
    assert plans[1].stages[1].optimisation == replace(plans[4].stages[1].optimisation, batch_size=IMAGES)
    close(several, one)


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2, 4, 8])
def test_dscl_key_encoder_moves_once_an_optimiser_step(accumulate, tmp_path):
    plan = make_plan("dscl", accumulate)
    stage = plan.stages[0]
    expected = [p.detach().clone() for p in stage.trained()]
    steps = []

    def after_step(whole=stage.after_step):
        for old, new in zip(expected, stage.trained(), strict=True):
            old.copy_(0.9 * old + 0.1 * new.detach())
        steps.append([key.clone() for key in stage.contrast.key_network.parameters()])
        whole()

    stage.after_step = after_step
    run(plan, accumulate, tmp_path)
    assert len(steps) == 2 * 3
    assert all(torch.equal(key, start) for key, start in zip(steps[0], make_network(), strict=True))
    for key, value in zip(stage.contrast.key_network.parameters(), expected, strict=True):
        torch.testing.assert_close(key, value, rtol=1e-12, atol=1e-12)


def make_network():
    return make_plan("dscl", 1).stages[0].trained()


def first_step(name, accumulate, tensors, out):
    """Some tensors of the plan's first stage after an optimiser step."""
    plan, found = make_plan(name, accumulate), []
    stage = plan.stages[0]

    def after_step():
        found.extend(value.clone() for value in tensors(stage))
        raise KeyboardInterrupt

    stage.after_step = after_step
    with pytest.raises(KeyboardInterrupt):
        run(Plan([stage], plan.test), accumulate, out)
    return found


@pytest.mark.parametrize("accumulate", [2, 4])
def test_each_image_goes_once_into_the_queue_and_the_statistics(accumulate, tmp_path):
    def queue(stage):
        queue = stage.contrast.losses.queue
        return queue.keys, queue.labels, queue.sums, queue.filled

    def statistics(stage):
        loss = stage.branch.loss
        return loss.sums, loss.counts

    for name, tensors, number in (("dscl", queue, IMAGES), ("proco", statistics, 2 * IMAGES)):
        one, several = (first_step(name, n, tensors, tmp_path / name) for n in (1, accumulate))
        assert int(one[-1].sum()) == number
        for value, expected in zip(several, one, strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


def test_proco_without_its_contrast_trains_as_one(tmp_path):
    """With it, a batch meets the statistics of the batches before it and its own, not of those that follow."""
    expected = run(make_plan("proco", 1, contrast_weight=0.0), 1, tmp_path)
    actual = run(make_plan("proco", 4, contrast_weight=0.0), 4, tmp_path)
    of_network = [{k: v for k, v in state.items() if "network" in k} for state in (actual, expected)]
    close(*of_network)
    close(actual, expected, 1e-4)  # the statistics are float32
