import errno
import json
import math
import resource
import subprocess
import sys

import pytest
import torch
import toy

from ltfast.engine import Optimisation, RunSettings
from ltfast.engine.checkpoint import CHECKPOINT, load_checkpoint, save_checkpoint
from ltfast.engine.loop import TrainingError, make_accelerator


def weights(out):
    return load_checkpoint(out)["model"]["0.classifier.weight"]


def test_training_learns_and_reports(tmp_path):
    metrics = toy.toy_train(tmp_path)
    assert metrics["top1"] > 60  # three classes two standard deviations apart
    assert metrics["class_counts"] == toy.COUNTS
    assert metrics["settings"] == {**toy.SETTINGS, "processes": 1}
    assert metrics["loss_ms"] > 0
    assert metrics["train_seconds"] > 0
    assert (tmp_path / "per_class.png").stat().st_size > 10_000
    assert list(tmp_path.glob("events.out.tfevents.*"))
    assert not list(tmp_path.glob("*.partial"))


def test_frozen_parameters_stay(tmp_path):
    plan = toy.toy_plan()
    toy.toy_train(tmp_path, plan)
    second = plan.stages[1]
    assert not any(p.requires_grad for p in second.encoder.parameters())
    assert all(p.requires_grad for p in second.classifier.parameters())
    first = toy.toy_plan(stages=1)
    toy.toy_train(tmp_path / "first", first)
    assert torch.equal(first.stages[0].encoder[0].weight, second.encoder[0].weight)


def test_accumulating_two_batches_is_one_of_twice_the_size(tmp_path):
    for size, accumulate in ((4, 2), (8, 1)):
        plan = toy.toy_plan(stages=1, size=size, dropout=0.0, shuffle=False)
        toy.toy_train(tmp_path / str(size), plan, accumulate=accumulate)
    torch.testing.assert_close(weights(tmp_path / "4"), weights(tmp_path / "8"), rtol=1e-5, atol=1e-6)


def test_bf16_trains_float32_weights(tmp_path):
    seen = []

    def on_step(stage):
        with torch.no_grad():
            seen.append(stage.classifier.weight.dtype)

    plan = toy.toy_plan(stages=1, on_step=on_step)
    dtypes = []
    plan.stages[0].loss.register_forward_pre_hook(lambda _, args: dtypes.append(args[0].dtype))
    metrics = toy.toy_train(tmp_path, plan, precision="bf16")
    assert metrics["top1"] > 60
    assert set(seen) == {torch.float32}
    assert not torch.equal(weights(tmp_path), weights_of_fp32_run(tmp_path / "fp32"))


def weights_of_fp32_run(out):
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    toy.toy_train(out, toy.toy_plan(stages=1))
    return weights(out)


@pytest.mark.skipif(torch.cuda.is_available(), reason="fp16 works where there is a GPU")
def test_fp16_without_a_gpu_is_refused():
    with pytest.raises(ValueError, match="precision: fp16 needs a GPU"):
        make_accelerator("fp16")


def test_clipping_limits_the_step(tmp_path):
    """With plain SGD's first step, weights move by at most lr * clip_norm."""
    moves = []

    def on_step(stage):
        moves.append((stage.classifier.weight.detach() - start).norm().item())
        raise KeyboardInterrupt

    for clip in (None, 1e-3):
        plan = toy.toy_plan(stages=1, on_step=on_step)
        stage = plan.stages[0]
        stage.optimisation = Optimisation(epochs=3, optimizer="momentum", momentum=0.0, weight_decay=0.0, lr=1.0)
        stage.start = lambda: None
        start = stage.classifier.weight.detach().clone()
        with pytest.raises(KeyboardInterrupt):
            toy.toy_train(tmp_path / str(clip), plan, clip_norm=clip)
    assert moves[0] > 1e-2
    assert 0 < moves[1] <= 1.001e-3


def test_nan_loss_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    steps = []

    def on_step(stage):
        steps.append(1)
        if len(steps) == 14:
            with torch.no_grad():
                stage.classifier.weight.fill_(float("nan"))

    with pytest.raises(TrainingError, match=r"the loss is nan at stage 'first', epoch 2, step 5; the last good check"):
        toy.toy_train(tmp_path, toy.toy_plan(on_step=on_step))
    saved = load_checkpoint(tmp_path)
    assert saved["position"] == {"stage": 0, "epoch": 1, "step": 0}
    assert all(value.isfinite().all() for value in saved["model"].values())


def test_nan_weight_at_the_end_of_an_epoch_is_not_saved(tmp_path):
    steps = []

    def on_step(stage):
        steps.append(1)
        if len(steps) == 20:
            with torch.no_grad():
                stage.classifier.weight[0, 0] = float("inf")

    with pytest.raises(TrainingError, match="a weight is not finite"):
        toy.toy_train(tmp_path, toy.toy_plan(on_step=on_step))
    assert load_checkpoint(tmp_path)["position"] == {"stage": 0, "epoch": 1, "step": 0}


def test_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / CHECKPOINT
    save_checkpoint(path, {"model": torch.ones(3)})

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=r"cannot write checkpoint .*No space left on device; the checkpoint before it"):
        save_checkpoint(path, {"model": torch.zeros(3)})
    assert torch.equal(load_checkpoint(path)["model"], torch.ones(3))
    assert list(tmp_path.iterdir()) == [path]


def test_write_that_fails_half_way_leaves_the_old_checkpoint(tmp_path):
    """A real failing write: the system's limit on the size of a file."""
    path = tmp_path / CHECKPOINT
    save_checkpoint(path, {"model": torch.ones(3)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write checkpoint .*File too large"):
            save_checkpoint(path, {"model": torch.zeros(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert torch.equal(load_checkpoint(path)["model"], torch.ones(3))
    assert list(tmp_path.iterdir()) == [path]


def test_two_processes_evaluate_every_image_once(tmp_path):
    """13 test images, 7 and 6 a process: the accuracies are those of one process with the same weights."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", toy.__file__]
    result = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, timeout=150)
    assert result.returncode == 0, result.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    plan = toy.toy_plan()
    torch.nn.ModuleList(plan.stages).load_state_dict(load_checkpoint(tmp_path)["model"])
    stage = plan.stages[-1].eval()
    predicted = torch.cat([stage.predict(x).argmax(1) for x, _ in plan.test])
    labels = torch.cat([y for _, y in plan.test])
    expected = [100.0 * (predicted[labels == c] == c).float().mean().item() for c in range(3)]
    assert metrics["per_class"] == pytest.approx(expected)
    assert metrics["top1"] == pytest.approx(100.0 * (predicted == labels).float().mean().item())
    assert metrics["settings"]["processes"] == 2


@pytest.mark.parametrize("schedule", ["cosine", "multistep", "constant"])
def test_schedules(schedule):
    optimisation = Optimisation(epochs=10, lr=0.4, schedule=schedule, warmup_epochs=2, milestones=(6, 8))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.4)
    scheduler = optimisation.make_scheduler(optimizer, 5)
    rates = []
    for step in range(50):
        scheduler.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[:10] == pytest.approx([0.04 * step for step in range(10)])
    if schedule == "multistep":
        assert rates[10:] == pytest.approx([0.4] * 20 + [0.04] * 10 + [0.004] * 10)
    elif schedule == "constant":
        assert rates[10:] == pytest.approx([0.4] * 40)
    else:
        cosine = [0.2 * (1 + math.cos(math.pi * step / 50)) for step in range(10, 50)]
        assert rates[10:] == pytest.approx(cosine)


@pytest.mark.parametrize(
    ("settings", "values", "name"),
    [
        (RunSettings, {"seed": -1}, "seed"),
        (RunSettings, {"precision": "fp8"}, "precision"),
        (RunSettings, {"accumulate": 0}, "accumulate"),
        (RunSettings, {"clip_norm": 0.0}, "clip_norm"),
        (RunSettings, {"workers": -1}, "workers"),
        (RunSettings, {"checkpoint_minutes": float("nan")}, "checkpoint_minutes"),
        (Optimisation, {"epochs": 0}, "epochs"),
        (Optimisation, {"batch_size": 0}, "batch_size"),
        (Optimisation, {"lr": float("nan")}, "lr"),
        (Optimisation, {"momentum": 1.0}, "momentum"),
        (Optimisation, {"weight_decay": -1.0}, "weight_decay"),
        (Optimisation, {"warmup_epochs": 31}, "warmup_epochs"),
        (Optimisation, {"milestones": (5, 5)}, "milestones"),
        (Optimisation, {"decay_rate": 0.0}, "decay_rate"),
    ],
)
def test_settings_out_of_range_are_named(settings, values, name):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        settings(**values)
