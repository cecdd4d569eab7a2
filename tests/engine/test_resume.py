"""A run that was stopped, in whatever way, and started again ends with the weights of one that was not."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import toy

from fixtures import undrawn_pictures  # noqa: F401
from ltfast.engine.checkpoint import CHECKPOINT, CheckpointError, load_checkpoint


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The digest of a run that nothing stopped."""
    out = tmp_path_factory.mktemp("whole")
    toy.toy_train(out)
    return toy.digest(out)


SCENARIOS = {
    # a checkpoint each step: killed in the middle of epochs of both stages
    "mid-epoch": ["0", "step:7", "step:10", "step:21", "none"],
    # a checkpoint each epoch: the epoch is done again
    "epoch-again": ["10", "step:17", "step:25", "none"],
    "mid-save": ["0", "rename:1", "rename:8", "write:1", "write:30", "none"],
}


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folders of runs that were killed and started again, and the exit statuses of each one's processes."""
    folders = {name: tmp_path_factory.mktemp(name) for name in SCENARIOS}
    words = [f"{folders[name]},{','.join(scenario)}" for name, scenario in SCENARIOS.items()]
    result = subprocess.run([sys.executable, toy.__file__, *words], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    statuses = {name: [] for name in SCENARIOS}
    for line in result.stdout.splitlines():
        if line.startswith("child "):
            _, folder, status = line.split()
            statuses[next(name for name in SCENARIOS if str(folders[name]) == folder)].append(int(status))
    return folders, statuses


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_run_ends_with_the_same_bits(name, expected, killed):
    folders, statuses = killed
    assert statuses[name] == [-signal.SIGKILL] * (len(SCENARIOS[name]) - 2) + [0]
    assert toy.digest(folders[name]) == expected
    assert (folders[name] / "metrics.json").exists()


def test_interrupt_saves_and_the_next_run_continues(tmp_path, expected, capsys):
    steps = []

    def on_step(stage):
        steps.append(stage.name)
        if len(steps) == 13:
            os.kill(os.getpid(), signal.SIGINT)

    assert toy.toy_train(tmp_path, toy.toy_plan(on_step=on_step)) is None
    assert len(steps) == 13
    assert load_checkpoint(tmp_path)["position"] == {"stage": 0, "epoch": 1, "step": 3}
    assert "stopped at epoch 2, step 3" in capsys.readouterr().out
    assert toy.toy_train(tmp_path) is not None
    assert toy.digest(tmp_path) == expected


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("size", "step", "position"),
    [
        (4, 10, {"stage": 0, "epoch": 1, "step": 0}),
        (4, 30, {"stage": 1, "epoch": 0, "step": 0}),
        (40, 2, {"stage": 0, "epoch": 2, "step": 0}),  # epochs of one step
    ],
)
def test_stop_in_the_last_step_of_an_epoch(tmp_path, number, size, step, position):
    steps = []

    def on_step(stage):
        steps.append(stage.name)
        if len(steps) == step:
            os.kill(os.getpid(), number)

    assert toy.toy_train(tmp_path, toy.toy_plan(size=size, on_step=on_step)) is None
    assert len(steps) == step
    assert load_checkpoint(tmp_path)["position"] == position


def test_stop_in_the_last_step_of_all_still_reports(tmp_path):
    assert toy.toy_train(tmp_path, toy.toy_plan(on_step=interrupted_after(60))) is not None


def interrupted_after(number):
    """A hook that asks the run to stop after so many optimiser steps."""
    left = [number]

    def on_step(stage):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGINT)

    return on_step


def test_accumulating_in_bf16_continues_with_the_same_bits(tmp_path):
    run = {"accumulate": 2, "precision": "bf16"}
    toy.toy_train(tmp_path / "whole", toy.toy_plan(size=3), **run)  # 13 batches: the last step of an epoch has one
    for step in (3, 6, 12):
        assert toy.toy_train(tmp_path / "cut", toy.toy_plan(size=3, on_step=interrupted_after(step)), **run) is None
    assert toy.toy_train(tmp_path / "cut", toy.toy_plan(size=3), **run) is not None
    assert toy.digest(tmp_path / "cut") == toy.digest(tmp_path / "whole")


def test_loss_of_an_epoch_is_that_of_all_its_steps(tmp_path, capsys):
    toy.toy_train(tmp_path / "whole")
    lines = [line for line in capsys.readouterr().out.splitlines() if "  loss " in line]
    for step in (13, 4):
        toy.toy_train(tmp_path / "cut", toy.toy_plan(on_step=interrupted_after(step)))
    toy.toy_train(tmp_path / "cut")
    assert [line for line in capsys.readouterr().out.splitlines() if "  loss " in line] == lines


def test_report_of_a_run_whose_checkpoint_was_deleted_goes(tmp_path):
    toy.toy_train(tmp_path)
    (tmp_path / CHECKPOINT).unlink()
    assert toy.toy_train(tmp_path, toy.toy_plan(on_step=interrupted_after(3))) is None
    assert not (tmp_path / "metrics.json").exists()
    assert not (tmp_path / "per_class.png").exists()


@pytest.mark.parametrize("stranger", ['{"top1": 1, "many": 1, "medium": 1, "few": 1, "settings": {}}', "damaged"])
def test_report_that_is_not_this_runs_is_written_again(tmp_path, stranger):
    metrics = toy.toy_train(tmp_path)
    (tmp_path / "metrics.json").write_text(stranger)
    again = toy.toy_train(tmp_path)
    assert again == json.loads((tmp_path / "metrics.json").read_text())
    times = {"loss_ms": 0, "step_ms": 0}
    assert {**again, **times} == {**metrics, **times}


def test_finished_run_says_so_and_does_nothing(tmp_path, expected, capsys):
    metrics = toy.toy_train(tmp_path)
    before = (tmp_path / CHECKPOINT).stat().st_mtime_ns

    def fail(stage):
        raise AssertionError("a finished run was trained again")

    assert toy.toy_train(tmp_path, toy.toy_plan(on_step=fail)) == json.loads(json.dumps(metrics))
    assert "nothing to do" in capsys.readouterr().out
    assert (tmp_path / CHECKPOINT).stat().st_mtime_ns == before


def test_finished_but_unreported_run_gets_its_report(tmp_path):
    metrics = toy.toy_train(tmp_path)
    (tmp_path / "metrics.json").unlink()
    again = toy.toy_train(tmp_path)
    assert again["per_class"] == metrics["per_class"]
    assert (tmp_path / "metrics.json").exists()


def test_other_settings_are_refused_by_name(tmp_path):
    toy.toy_train(tmp_path)
    with pytest.raises(CheckpointError, match="epochs was 3 and is now 5"):
        toy.toy_train(tmp_path, settings={**toy.SETTINGS, "epochs": 5})


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["truncated", "flipped", "text", "pickle"])
def test_damaged_checkpoint_is_named(tmp_path, damage):
    toy.toy_train(tmp_path)
    path = tmp_path / CHECKPOINT
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(content[: len(content) * 2 // 3])
    elif damage == "flipped":
        weight = load_checkpoint(path)["model"]["0.classifier.weight"].numpy().tobytes()
        content[content.index(weight)] ^= 1
        path.write_bytes(content)
    elif damage == "text":
        path.write_text("no checkpoint")
    else:
        import torch

        torch.save({"format": 1, "model": Path("code")}, path)  # needs more than plain values to unpickle
    with pytest.raises(CheckpointError, match=f"checkpoint {path}.* delete it to start again"):
        toy.toy_train(tmp_path)
