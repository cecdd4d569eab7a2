"""Processes that die: a run killed at any time, one of several processes, and a data-loading process."""

import json
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from multiprocessing import active_children
from pathlib import Path

import pytest

from faults.conftest import same_bits, tiny, tiny_folder, tiny_npz
from faults.launch import Fault, Scenario
from ltfast.cli import main
from ltfast.engine.loop import _Run

pytestmark = pytest.mark.slow  # runs that are killed and resumed


def started(words, log):
    """The process of a run, forked."""
    child = os.fork()
    if child == 0:
        for stream in (1, 2):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
        os._exit(main(words))
    return child


def test_killed_at_random_times_ends_with_the_same_bits(tmp_path):
    source = tiny_npz(tmp_path / "d.npz", [40, 20])
    words = [*tiny("ce", source, batch_size=2), "--epochs", "3", "--checkpoint-minutes", "0", "--out"]
    begun = time.monotonic()
    assert main([*words, str(tmp_path / "whole")]) == 0
    takes = time.monotonic() - begun
    seed = secrets.token_hex(4)
    draw, ends = random.Random(seed), []
    for kill in range(8):
        child = started([*words, str(tmp_path / "run")], tmp_path / "log")
        if kill < 7:
            time.sleep(draw.uniform(0, takes / 3))
            os.kill(child, signal.SIGKILL)
        ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    shown = (tmp_path / "log").read_text()
    assert ends[-1] == 0, shown
    assert same_bits(tmp_path / "run", tmp_path / "whole"), seed
    assert not list((tmp_path / "run").glob("*.partial"))
    assert not (tmp_path / "run" / ".lock").exists()


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """Runs in two processes: their folder, how each ended, and the output of all."""
    folder = tmp_path_factory.mktemp("launched")
    killed = Fault(restarts=0, rank=1, steps=3, to="self", signal="SIGKILL")
    killed_again = Fault(restarts=1, rank=0, steps=4, to="self", signal="SIGKILL")
    terminated = Fault(restarts=0, rank=0, steps=3, to="launcher", signal="SIGTERM")
    stopped, elsewhere = str(folder / "stopped"), str(folder / "elsewhere")
    scenarios = {
        "whole": Scenario(str(folder / "whole")),
        "restarted": Scenario(str(folder / "restarted"), restarts=2, faults=(killed, killed_again)),
        "alone": Scenario(str(folder / "alone"), faults=(killed,)),
        "stopped": Scenario(stopped, faults=(terminated,)),
        "continued": Scenario(stopped),
        "other lr": Scenario(str(folder / "other lr"), second=("--lr", "0.5")),
        "other folder": Scenario(stopped, second=("--out", elsewhere)),
    }
    words = ["train", "--data", tiny_npz(folder / "d.npz", [200, 160]), "--epochs", "2", "--batch-size", "12"]
    script = Path(__file__).parent / "launch.py"
    listed = json.dumps([asdict(scenario) for scenario in scenarios.values()])
    command = [sys.executable, str(script), listed, "--", *words, "--checkpoint-minutes", "0"]
    # files, since the last process left behind by a killed one would keep a pipe open
    with open(folder / "out", "w") as out, open(folder / "err", "w") as err:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, stdout=out, stderr=err, timeout=500, check=True, env=environment)
    shown, errors = (folder / "out").read_text(), (folder / "err").read_text()
    ends = [json.loads(line) for line in shown.splitlines() if line.startswith("{")]
    return folder, dict(zip(scenarios, ends, strict=True)), shown, errors


def test_a_dead_process_restarts_the_group_which_ends_with_the_same_bits(launched):
    folder, ends, shown, _ = launched
    assert ends["whole"]["end"] == ends["restarted"]["end"] == "finished"
    assert "resuming train at epoch 1, step 3\n" in shown
    assert "resuming train at epoch 1, step 6\n" in shown
    assert same_bits(folder / "restarted", folder / "whole")


def test_without_restarts_a_dead_process_ends_the_others_at_once(launched):
    folder, ends, _, errors = launched
    # whichever process torchrun notices first: the killed one, or the other that has detected it
    assert ends["alone"]["end"] in ("rank 1 failed: -9", "rank 0 failed: 1")
    assert ends["alone"]["seconds"] < 60  # gloo's own timeout is half an hour
    assert "ltfast: error: another process of this run has ended; see its own message for the reason" in errors
    assert (folder / "alone" / "checkpoint.pt").exists()
    assert not list((folder / "alone").glob("metrics.json"))


def test_sigterm_to_the_launcher_stops_all_at_one_step_with_a_checkpoint(launched):
    folder, ends, shown, _ = launched
    assert ends["stopped"]["end"] == "stopped by SIGTERM"
    assert "stopped at epoch 1, step 10; the same command continues from there" in shown
    assert "resuming train at epoch 1, step 10\n" in shown
    assert ends["continued"]["end"] == "finished"
    assert same_bits(folder / "stopped", folder / "whole")


def test_a_process_with_another_setting_ends_all_before_they_train(launched):
    folder, ends, _, errors = launched
    assert ends["other lr"]["end"] in ("rank 0 failed: 2", "rank 1 failed: 2")
    assert ends["other lr"]["seconds"] < 60
    message = (
        "ltfast: error: the processes of this run differ. lr: 0.1 in process 0, 0.5 in process 1. Start all of them"
    )
    assert errors.count(message) == 2  # each process reports it
    assert not (folder / "other lr").exists()


def test_a_process_that_does_not_see_the_checkpoint_ends_all(launched):
    """On two machines without a common file system, one process would start anew while the other resumes."""
    folder, ends, _, errors = launched
    assert ends["other folder"]["end"] in ("rank 0 failed: 2", "rank 1 failed: 2")
    difference = "checkpoint: True in process 0, False in process 1. All processes need one folder --out "
    assert errors.count(difference) == 2
    assert not (folder / "elsewhere" / "checkpoint.pt").exists()
    assert (folder / "stopped" / "metrics.json").exists()


def test_a_killed_process_that_loads_images_is_named_and_the_run_can_go_on(tmp_path, capsys, monkeypatch):
    """The kernel kills such a process when memory runs out."""
    source = tiny_folder(tmp_path / "d")
    words = ["train", "--data", source, "--batch-size", "4", "--image-size", "8", "--epochs", "3", "--workers", "2"]
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    killed, whole = [], _Run._step

    def step(*arguments):
        logged = whole(*arguments)
        killed.append(active_children())
        if len(killed) == 4:
            os.kill(killed[-1][0].pid, signal.SIGKILL)
        return logged

    monkeypatch.setattr(_Run, "_step", step)
    assert main([*words, "--out", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert "a process that loads images has ended" in error
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    assert same_bits(tmp_path / "run", tmp_path / "whole")
