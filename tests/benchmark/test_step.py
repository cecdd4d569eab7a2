import json

import numpy as np
import pytest
import torch

from ltfast.benchmark import step
from ltfast.benchmark.step import METHODS, default_sizes, run_steps
from ltfast.benchmark.steps.noise import noise_bundle
from ltfast.benchmark.steps.size import Size
from ltfast.cli import main
from ltfast.engine.loss_calls import caught_loss_calls
from ltfast.methods.dscl import ContrastStage
from ltfast.methods.livt import FineTuningStage
from ltfast.methods.lpt import GroupPromptStage
from ltfast.methods.proco import ProCoStage

CPU = torch.device("cpu")
RESNET = Size("resnet10t", 12, 64, classes=3, imbalance=2, queue=24, patch_pixels=32)
VIT = Size("vit_tiny_patch16_224", 4, 32, classes=7)
BALANCED = Size("vit_tiny_patch16_224", 4, 32, classes=2, imbalance=1)  # no noise; the exponents matter
SIZES = {"proco": RESNET, "dscl": RESNET, "lpt": BALANCED, "livt": VIT}
STAGES = {"proco": ProCoStage, "dscl": ContrastStage, "lpt": GroupPromptStage, "livt": FineTuningStage}


def trained(pair):
    return [p for group in pair.optimizer.param_groups for p in group["params"]]


def with_gradient(pair, name):
    """The loss, and the gradients of all parameters as one vector."""
    torch.manual_seed(0)  # for stochastic depth
    np.random.seed(0)  # for MixUp
    loss = pair.loss(name)
    return loss.double(), torch.cat([g.flatten() for g in torch.autograd.grad(loss, trained(pair))])


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_both_are_the_same_step(method):
    pair = METHODS[method](SIZES[method], CPU)
    for _ in range(3):  # statistics and the queue change; after two batches, all keys of the queue are new
        loss, gradient = with_gradient(pair, "ltfast")
        expected_loss, expected = with_gradient(pair, "published")
        torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=0)
        tolerance = 1e-4 if method == "proco" else 1e-5  # 1 - R^2 cancels in both implementations
        assert (gradient - expected).norm() < tolerance * expected.norm()


@pytest.mark.parametrize("method", METHODS)
def test_a_step_trains_and_the_loss_alone_does_not(method):
    pair = METHODS[method](SIZES[method], CPU)
    assert list(pair.stages) == ["ltfast", "published"]
    assert type(pair.stages["ltfast"]) is STAGES[method]
    for name, stage in pair.stages.items():
        assert isinstance(stage, STAGES[method])
        assert stage.training
        with caught_loss_calls(stage) as calls:
            pair.loss(name)
        assert [call.loss for call in calls] == list(stage.losses())
        reached = []
        leaves = [leaf for call in calls for leaf in call.differentiable]
        for leaf in leaves:
            leaf.register_hook(reached.append)
        before = [p.clone() for p in trained(pair)]
        for call in calls:
            call.repeat(pair.autocast)
        assert len(reached) == len(leaves) > 0
        assert all(map(torch.equal, trained(pair), before))
        pair.step(name)
        assert not all(map(torch.equal, trained(pair), before))
        assert all(p.grad is None for p in trained(pair))


@pytest.mark.parametrize("method", METHODS)
def test_both_train_the_same_networks(method):
    pair = METHODS[method](SIZES[method], CPU)
    ours, theirs = ({id(p) for p in stage.trained()} for stage in pair.stages.values())
    assert ours == theirs >= {id(p) for p in trained(pair)}


def test_a_step_moves_the_queue_and_the_key_encoder():
    pair = METHODS["dscl"](RESNET, CPU)
    for name, stage in pair.stages.items():
        queue, (key, *_) = stage.contrast.losses.queue, stage.contrast.key_network.projection.parameters()
        before, labels, position = key.clone(), queue.labels.clone(), int(queue.position)
        pair.step(name)
        assert not torch.equal(key, before)
        assert int(queue.position) == position + RESNET.images
        assert torch.equal(queue.labels[: RESNET.images], pair.batch[1])
        assert torch.equal(queue.labels[RESNET.images :], labels[RESNET.images :])


def test_the_images_of_noise_have_a_long_tail():
    bundle = noise_bundle(RESNET)
    assert bundle.class_counts == RESNET.class_counts().tolist() == [1280, 905, 640]
    (image, label), again = bundle.train[2000], bundle.train[2000][0]
    assert (image.size, image.mode, label) == ((64, 64), "RGB", 1)
    assert image.tobytes() == again.tobytes() != bundle.train[2001][0].tobytes()


def test_rows():
    rows = run_steps(CPU, ["lpt", "livt"], seconds=1e-3, sizes={"lpt": VIT, "livt": VIT})
    assert [(row["method"], row["implementation"]) for row in rows] == [
        (method, name) for method in ("lpt", "livt") for name in ("ltfast", "published")
    ]
    for row in rows:
        assert row["network"] == "vit_tiny_patch16_224, 32 px"
        assert (row["images"], row["classes"]) == (4, 7)
        assert 0 < row["q1_ms"] <= row["median_ms"] <= row["q3_ms"]
        assert row["images_per_s"] * row["median_ms"] == pytest.approx(4e3)
        assert row["loss_share"] == pytest.approx(row["loss_ms"] / row["median_ms"])
        assert row["loss_ms"] > 0
        assert row["peak_mib"] is None or row["peak_mib"] >= 0
    for ours, theirs in zip(rows[::2], rows[1::2], strict=True):
        assert ours["times_ltfast"] == 1
        assert theirs["times_ltfast"] == pytest.approx(theirs["median_ms"] / ours["median_ms"])


def test_a_method_that_fails_is_an_entry(tmp_path, monkeypatch):
    def rows(method, size, device, seconds):
        if method == "lpt":
            raise ValueError("no")
        return [{"method": method}]

    monkeypatch.setattr(step, "_rows", rows)
    shown = []
    found = step.bench(CPU, ["lpt", "livt"], seconds=1, out=tmp_path, show=lambda *both: shown.append(both))
    (failed,) = found["missing"]
    assert (failed["case"], failed["reason"], failed["failed"]) == ("lpt", "ValueError: no", True)
    assert found["rows"] == [{"method": "livt"}]
    assert shown == [([], [failed]), (found["rows"], [])]
    assert json.loads((tmp_path / "steps.json").read_text()) == found
    lines = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert lines == [{"machine": found["machine"]}, failed, *found["rows"]]


def test_the_command_says_what_failed_and_shows_the_others(tmp_path, monkeypatch, capsys):
    numbers = ("median_ms", "q1_ms", "q3_ms", "images_per_s", "times_ltfast", "loss_share", "peak_mib")
    row = {"method": "livt", "network": "a network", "images": 4, "implementation": "ltfast", "others": 0.5}

    def rows(method, size, device, seconds):
        if method == "lpt":
            raise ValueError("no")
        return [row | dict.fromkeys(numbers, 1.0)]

    monkeypatch.setattr(step, "_rows", rows)
    words = ["bench", "step", "--device", "cpu", "--out", str(tmp_path), "--methods"]
    assert main([*words, "lpt,livt"]) == 1
    text = capsys.readouterr().out
    assert "failed: lpt, ltfast (ValueError: no)" in text
    assert "livt: a network, 4 images" in text
    assert "not alone: other processes used 50 % of the cores" in text
    assert main([*words, "livt"]) == 0


def test_default_sizes():
    sizes = default_sizes(CPU)
    assert list(sizes) == list(METHODS)
    assert all(size.images % 2 == 0 and size.queue % size.images == 0 for size in sizes.values())
