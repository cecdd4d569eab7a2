import errno
import json
import math
import resource
import subprocess
import sys

import pytest
import torch
import toy

from fixtures import undrawn_pictures  # noqa: F401
from ltfast.engine import Optimisation, Plan, Predictor, RunSettings
from ltfast.engine.accelerator import make_accelerator
from ltfast.engine.checkpoint import CHECKPOINT, load_checkpoint, save_checkpoint
from ltfast.engine.finite import TrainingError
from ltfast.engine.lock import _lock, locked
from ltfast.engine.plot import plot_per_class
from ltfast.engine.seeding import seed_everything
from ltfast.evaluation.predictions import PREDICTIONS, read_predictions


def weights(out):
    return load_checkpoint(out)["model"]["0.classifier.weight"]


def test_training_learns_and_reports(tmp_path, monkeypatch):
    monkeypatch.setattr("ltfast.engine.report.plot_per_class", plot_per_class)
    metrics = toy.toy_train(tmp_path)
    assert metrics["top1"] > 60  # three classes some standard deviations apart
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
    toy.toy_train(tmp_path / "first", toy.toy_plan(stages=1))
    first, both = load_checkpoint(tmp_path / "first")["model"], load_checkpoint(tmp_path)["model"]
    encoder = [name for name in first if name.startswith("0.encoder.")]
    assert "0.encoder.0.running_mean" in encoder
    assert all(torch.equal(first[name], both[name]) for name in encoder)


def test_training_mode_is_for_what_is_trained():
    stage = toy.toy_plan().stages[1].train()
    assert not any(module.training for module in stage.encoder.modules())
    assert not stage.momentum.training
    assert stage.training
    assert stage.classifier.training
    assert stage.dropout.training  # no part of anything frozen
    stage.eval()
    assert not any(module.training for module in stage.modules())


def test_a_stage_may_train_with_the_batch_statistics_of_a_frozen_part():
    class Momentum(toy.ToyStage):
        def train(self, mode=True):
            super().train(mode)
            self.encoder.train(mode)
            return self

    stage = Momentum("m", toy.toy_plan().stages[0].encoder, freeze=True)
    assert stage.train().encoder[0].training
    assert not stage.eval().encoder[0].training


def test_accumulating_two_batches_is_one_of_twice_the_size(tmp_path):
    for size, accumulate in ((4, 2), (8, 1)):
        plan = toy.toy_plan(stages=1, size=size, dropout=0.0, shuffle=False, norm=False)
        toy.toy_train(tmp_path / str(size), plan, accumulate=accumulate)
    torch.testing.assert_close(weights(tmp_path / "4"), weights(tmp_path / "8"), rtol=1e-5, atol=1e-6)


class SizedBatches(toy.ToyBatches):
    """Batches of given sizes, in the points' order."""

    def __init__(self, *sizes):
        super().__init__(0)
        self.sizes = sizes

    def __len__(self):
        return len(self.sizes)

    def epoch(self, epoch, skip):
        yield from list(zip(self.points.split(self.sizes), self.labels.split(self.sizes), strict=True))[skip:]


@pytest.mark.parametrize(
    ("accumulate", "sizes", "joined"),
    [(3, (8, 8, 8, 8, 8), (24, 16)), (4, (12, 12, 12, 4), (40,)), (2, (10, 5, 10, 10, 5), (15, 20, 5))],
)
def test_each_image_of_an_optimiser_step_counts_the_same(accumulate, sizes, joined, tmp_path):
    """Where the last step has fewer batches, and where a batch is smaller."""
    for name, number, of_batches in (("several", accumulate, sizes), ("joined", 1, joined)):
        plan = toy.toy_plan(stages=1, dropout=0.0, norm=False)
        plan.stages[0].batches = SizedBatches(*of_batches)
        toy.toy_train(tmp_path / name, plan, accumulate=number)
    torch.testing.assert_close(weights(tmp_path / "several"), weights(tmp_path / "joined"), rtol=1e-5, atol=1e-6)


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
    assert set(dtypes) == {torch.bfloat16}
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


def test_gradients_are_handed_over_before_they_are_clipped(tmp_path):
    seen = []
    plan = toy.toy_plan(stages=1)
    stage = plan.stages[0]

    def after_backward():
        seen.append(torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in stage.trained()])))
        for p in stage.trained():
            p.grad.zero_()

    before = [p.detach().clone() for p in stage.encoder.parameters()]
    stage.after_backward = after_backward
    stage.optimisation = Optimisation(epochs=1, batch_size=4, lr=0.05, weight_decay=0.0)
    toy.toy_train(tmp_path, plan, clip_norm=1e-3, accumulate=2)
    assert len(seen) == 5
    assert all(norm > 1e-2 for norm in seen)
    assert all(torch.equal(p, old) for p, old in zip(stage.encoder.parameters(), before, strict=True))


def test_a_plan_s_own_predictor_gives_the_result(tmp_path):
    class Always(Predictor):
        def predict(self, *views):
            return torch.tensor([0.0, 0.0, 1.0]).expand(len(views[0]), 3)

    plan = toy.toy_plan()
    metrics = toy.toy_train(tmp_path, Plan(plan.stages, plan.test, Always()))
    assert metrics["per_class"] == [0.0, 0.0, 100.0]


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
    with pytest.raises(OSError, match=r"cannot write .*checkpoint.pt: .*No space left on device; the one before it"):
        save_checkpoint(path, {"model": torch.zeros(3)})
    assert torch.equal(torch.load(path, weights_only=True)["model"], torch.ones(3))
    assert list(tmp_path.iterdir()) == [path]


def test_write_that_fails_half_way_leaves_the_old_checkpoint(tmp_path):
    """A real failing write: the system's limit on the size of a file."""
    path = tmp_path / CHECKPOINT
    save_checkpoint(path, {"model": torch.ones(3)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write .*checkpoint.pt: .*File too large"):
            save_checkpoint(path, {"model": torch.zeros(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert torch.equal(torch.load(path, weights_only=True)["model"], torch.ones(3))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_two_processes_evaluate_every_image_once_with_the_same_weights(tmp_path):
    """13 test images, 7 and 6 a process: the accuracies are those of one process with the checkpoint's weights."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", toy.__file__]
    result = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, timeout=150)
    assert result.returncode == 0, result.stderr
    for stages in (1, 2):
        out = tmp_path / str(stages)
        metrics = json.loads((out / "metrics.json").read_text())
        plan = toy.toy_plan(stages=stages)
        torch.nn.ModuleList(plan.stages).load_state_dict(load_checkpoint(out)["model"])
        stage = plan.stages[-1].eval()
        scores = torch.cat([stage.predict(x) for x, _ in plan.test])
        predicted = scores.argmax(1)
        labels = torch.cat([y for _, y in plan.test])
        listed = read_predictions(out / PREDICTIONS, ["a", "b", "c"])
        assert listed.paths == [str(i) for i in range(13)]  # in their order, none twice
        assert (listed.labels.tolist(), listed.predicted.tolist()) == (labels.tolist(), predicted.tolist())
        torch.testing.assert_close(torch.from_numpy(listed.confidence), scores.double().softmax(1).amax(1))
        expected = [100.0 * (predicted[labels == c] == c).float().mean().item() for c in range(3)]
        assert metrics["per_class"] == pytest.approx(expected)
        assert metrics["top1"] == pytest.approx(100.0 * (predicted == labels).float().mean().item())
        assert metrics["settings"]["processes"] == 2
        assert metrics["loss_ms"] is None  # a loss may wait for the other process
        for rank in (0, 1):
            buffers = torch.load(out / f"buffers{rank}.pt", weights_only=True)
            assert "encoder.0.running_mean" in buffers
            assert all(torch.equal(value, buffers[name]) for name, value in stage.named_buffers())


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
        (Optimisation, {"milestones": (30, 40), "schedule": "multistep"}, "milestones"),
        (Optimisation, {"decay_rate": 0.0}, "decay_rate"),
    ],
)
def test_settings_out_of_range_are_named(settings, values, name):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        settings(**values)


def test_warmup_longer_than_training_names_the_way_out():
    with pytest.raises(ValueError, match=r"^warmup_epochs: .*lower --warmup-epochs"):
        Optimisation(epochs=2, warmup_epochs=5)


def test_milestones_matter_to_multistep_alone():
    Optimisation(epochs=30, milestones=(160, 180))
    Optimisation(epochs=30, milestones=(20, 180), schedule="multistep")


def test_optimizer_takes_timms_options():
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    optimisation = Optimisation(optimizer="adamw", weight_decay=0.1)
    optimizer = optimisation.make_optimizer(network, betas=(0.8, 0.95))
    assert [(group["betas"], group["weight_decay"]) for group in optimizer.param_groups] == [((0.8, 0.95), 0.1)]
    groups = optimisation.make_optimizer(network, filter_bias_and_bn=True).param_groups
    assert sorted(group["weight_decay"] for group in groups) == [0.0, 0.1]


def test_every_position_has_a_seed_of_its_own():
    draws = set()
    for position in ((5,), (5, 0), (5, 0, 0), (5, 0, 0, 0, 0, 0)):
        seed_everything(*position)
        draws.add(torch.rand(()).item())
    assert len(draws) == 4


def test_each_stage_closes_its_batches(tmp_path):
    plan = toy.toy_plan()
    at_step = []
    plan.stages[1].on_step = lambda stage: at_step.append(plan.stages[0].batches.closed)
    toy.toy_train(tmp_path, plan)
    assert set(at_step) == {1}
    assert plan.stages[1].batches.closed >= 1


def test_loss_time_is_of_the_last_stage_that_names_losses(tmp_path, capsys):
    plan = toy.toy_plan()
    plan.stages[1].losses = super(toy.ToyStage, plan.stages[1]).losses
    plan.stages[1].before = plan.stages[0].classifier  # frozen in the second stage
    assert toy.toy_train(tmp_path / "first", plan)["loss_ms"] > 0
    plan = toy.toy_plan()
    for stage in plan.stages:
        stage.losses = super(toy.ToyStage, stage).losses
    assert toy.toy_train(tmp_path / "none", plan)["loss_ms"] is None
    assert json.loads((tmp_path / "none" / "metrics.json").read_text())["loss_ms"] is None
    assert "not timed" not in capsys.readouterr().out


def test_loss_that_cannot_be_called_alone_costs_no_report(tmp_path, capsys):
    class Together(torch.nn.CrossEntropyLoss):
        def forward(self, logits, labels):
            if logits.is_leaf:
                raise KeyError("no\nnetwork")
            return super().forward(logits, labels)

    plan = toy.toy_plan()
    plan.stages[1].loss = Together()
    metrics = toy.toy_train(tmp_path, plan)
    assert metrics["loss_ms"] is None
    assert metrics["top1"] > 60
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert "the loss was not timed: KeyError: " in capsys.readouterr().out


HOLD = """
import sys
from pathlib import Path
from ltfast.engine.lock import _lock, locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(OSError, match=f"--out {tmp_path}: another run is writing there"):
            toy.toy_train(tmp_path)
    finally:
        holder.kill()
        holder.communicate()
    assert toy.toy_train(tmp_path) is not None  # at once after the kill
    assert not (tmp_path / ".lock").exists()


def test_children_of_a_killed_run_do_not_hold_its_folder(tmp_path):
    """As the workers of a DataLoader, which notice seconds later that the run is gone."""
    fork = HOLD.replace("    print", "    import os, time\n    os.fork() or time.sleep(60)\n    print")
    holder = subprocess.Popen(
        [sys.executable, "-c", fork, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    holder.stdout.readline()
    holder.kill()
    holder.wait()
    with locked(tmp_path):
        pass


def test_lock_that_its_owner_removed_is_none(tmp_path):
    with open(tmp_path / ".lock", "w") as file:
        (tmp_path / ".lock").unlink()
        assert not _lock(file.fileno())


def test_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=f"^--out {tmp_path}/file/run: cannot be written: .*Not a directory"):
        toy.toy_train(tmp_path / "file" / "run")


def test_messages_show_names_with_brackets(tmp_path, capsys):
    out = tmp_path / "run[x]"
    plan = toy.toy_plan(stages=1)
    plan.stages[0].name = "first[y]"
    toy.toy_train(out, plan)
    assert "first[y] 1/3" in capsys.readouterr().out
    toy.toy_train(out, toy.toy_plan(stages=1))
    assert f"{out} holds a finished run" in capsys.readouterr().out
