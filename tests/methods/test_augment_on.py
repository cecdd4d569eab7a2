"""Runs whose images are augmented on the device that trains. Here it is the CPU, so they have the other runs' bits."""

import json

import pytest
import torch
from accelerate.state import AcceleratorState

from ltfast.cli import main
from ltfast.engine import RunSettings
from ltfast.engine.checkpoint import load_checkpoint
from ltfast.engine.seeding import seed_everything
from ltfast.errors import SettingError
from ltfast.methods import METHODS, BuildContext, settings_of
from methods.conftest import check_killed_runs, tiny_bundle

VALUES = {
    "ce": {"augment": "cifar"},
    "do": {"augment": "imagenet", "group_minima": (10, 4)},
    "dscl": {"augment": "dscl", "queue_size": 16, "patches": 2, "feature_dim": 16},
    "lift": {"augment": "resized_crop"},
    "livt": {"warmup_epochs": 0, "augment": "cifar",
             "pretrain_epochs": 1, "pretrain_augment": "mae", "pretrain_batch_size": 4,
             "decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 2},
    "lpt": {"augment": "simclr", "prompt_length": 2, "group_length": 2, "pool_size": 4, "group_blocks": 2},
    "proco": {"augment": "cifar_autoaugment", "contrast_augment": "simclr", "feature_dim": 16, "hidden_dim": 32},
}  # fmt: skip
DIGITS = ["train", "--data", "digits", "--imbalance", "20", "--epochs", "2", "--batch-size", "32"]


def plan_of(method, augment_on, **changes):
    run = RunSettings(seed=3, augment_on=augment_on)
    settings = settings_of(method, {"batch_size": 4, "epochs": 1, **VALUES[method], **changes})
    seed_everything(0)
    return METHODS[method].build(settings, tiny_bundle(), BuildContext(run))


def tensors(batch):
    for part in batch:
        if isinstance(part, torch.Tensor):
            yield part
        else:
            yield from tensors(part)


@pytest.mark.parametrize("method", METHODS)
def test_each_stage_gets_the_same_batches(method):
    plans = [plan_of(method, augment_on) for augment_on in ("cpu", "device")]
    for cpu, device in zip(*(plan.stages for plan in plans), strict=True):
        for epoch in range(2):
            for batches in zip(cpu.batches.epoch(epoch, 1), device.batches.epoch(epoch, 1), strict=True):
                assert not all(map(torch.is_tensor, batches[1]))  # unfinished views have numbers
                expected, actual = cpu.batches.finish(batches[0]), device.batches.finish(batches[1])
                for one, other in zip(tensors(expected), tensors(actual), strict=True):
                    torch.testing.assert_close(other, one, rtol=0, atol=1e-5)
    for cpu, device in zip(*(plan.test for plan in plans), strict=True):
        assert all(map(torch.equal, cpu, device))


def test_prompt_keys_are_initialised_with_the_same_images():
    keys = []
    for augment_on in ("cpu", "device"):
        stage = plan_of("lpt", augment_on, augment="cifar").stages[1]
        stage.start()
        keys.append(stage.network.pool.keys.detach())
    torch.testing.assert_close(*keys)


def trained(out, *words):
    AcceleratorState._reset_state(reset_partial_state=True)
    assert main([*DIGITS, *words, "--out", str(out)]) == 0
    return load_checkpoint(out)["model"], json.loads((out / "metrics.json").read_text())


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.usefixtures("_command_line")
def test_a_run_on_digits_ends_with_the_same_weights(tmp_path, capsys):
    weights, metrics = trained(tmp_path / "cpu")
    other, other_metrics = trained(tmp_path / "device", "--augment-on", "device")
    assert same(weights, other)  # which has no images
    assert metrics["per_class"] == other_metrics["per_class"]
    assert metrics["train_seconds"] > 0
    assert other_metrics["step_images"] == 32
    capsys.readouterr()
    assert main([*DIGITS, "--out", str(tmp_path / "device")]) == 2
    assert "augment_on was 'device' and is now 'cpu'" in capsys.readouterr().err
    AcceleratorState._reset_state(reset_partial_state=True)
    assert main(["eval", "--checkpoint", str(tmp_path / "device")]) == 0
    evaluated = json.loads((tmp_path / "device/eval.json").read_text())
    assert evaluated["per_class"] == metrics["per_class"]


@pytest.mark.slow
@pytest.mark.usefixtures("_command_line")
def test_workers_accumulation_and_precision_change_nothing_else(tmp_path):
    words = ["--accumulate", "2", "--precision", "bf16"]
    weights, _ = trained(tmp_path / "cpu", *words)
    assert same(weights, trained(tmp_path / "device", *words, "--augment-on", "device", "--workers", "2")[0])


@pytest.mark.slow
@pytest.mark.usefixtures("_command_line")
@pytest.mark.parametrize(
    "policies",
    [
        ["--method", "ce", "--augment", "basic"],  # the device holds the images
        ["--method", "proco", "--augment", "simclr", "--contrast-augment", "randaugment"],
    ],
)
def test_killed_in_mid_epoch_ends_with_the_same_bits(policies, tmp_path):
    words = [*policies, "--augment-on", "device"]
    trained(tmp_path / "whole", *words)
    kills, resumed = [3, 12], ["train", "train"]
    check_killed_runs(tmp_path / "whole", [*DIGITS, *words], kills, resumed, tmp_path / "cut")


@pytest.mark.usefixtures("_command_line")
def test_other_places_are_refused(tmp_path, capsys):
    assert main([*DIGITS, "--augment-on", "gpu", "--out", str(tmp_path)]) == 2
    assert "--augment-on: expected one of cpu, device, got 'gpu'" in capsys.readouterr().err
    with pytest.raises(SettingError, match="augment_on: expected cpu or device, got 'cuda'"):
        RunSettings(augment_on="cuda")


@pytest.mark.parametrize("method", METHODS)
def test_checkpoints_have_no_images(method):
    cpu, device = (plan_of(method, augment_on, augment="basic").stages for augment_on in ("cpu", "device"))
    for one, other in zip(cpu, device, strict=True):
        assert other.batches.on_device is not None
        assert one.state_dict().keys() == other.state_dict().keys()
