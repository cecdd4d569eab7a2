"""Runs whose images are loaded by other processes."""

import multiprocessing
import os
import resource
import signal
import sys
from contextlib import redirect_stderr
from types import SimpleNamespace

import pytest
import toy

from ltfast.data import class_groups, load
from ltfast.engine import RunSettings
from ltfast.engine.accelerator import make_accelerator
from ltfast.engine.loop import train
from ltfast.engine.seeding import seed_everything
from ltfast.methods import BuildContext, ce


def run_digits(out, hook=lambda step: None):
    """Two epochs on the digits; `hook` is called after each step with its number in this process."""
    run = RunSettings(workers=2, accumulate=2, precision="bf16")
    bundle = load("digits", imbalance=20)
    seed_everything(run.seed)
    plan = ce.build(ce.Settings(epochs=2, batch_size=32), bundle, BuildContext(run))
    steps = iter(range(1, 1000))
    plan.stages[0].after_step = lambda: hook(next(steps))
    return train(
        plan,
        run=run,
        settings={"data": "digits"},
        facts={"class_names": bundle.class_names},
        class_counts=bundle.class_counts,
        groups=class_groups(bundle.class_counts),
        out=out,
        accelerator=make_accelerator(run.precision),
    )


@pytest.mark.slow
def test_workers_continue_with_the_same_bits_and_end_with_the_stage(tmp_path):
    loading = []
    others = set(multiprocessing.active_children())  # a test before may have left some until they are collected

    def children():
        return set(multiprocessing.active_children()) - others

    run_digits(tmp_path / "whole", lambda step: loading.append(len(children())))
    assert max(loading) == 2
    assert not children()

    def stop(step):
        if step == len(loading) // 2 + 1:
            os.kill(os.getpid(), signal.SIGINT)

    assert run_digits(tmp_path / "cut", stop) is None
    assert not children()
    assert run_digits(tmp_path / "cut") is not None
    assert toy.digest(tmp_path / "cut") == toy.digest(tmp_path / "whole")


def refused(out, prepare):
    """What a run with two workers says in a process of its own that is prepared so, and its exit status."""
    from ltfast.cli import main

    child = os.fork()
    if child == 0:
        prepare()
        words = ["train", "--data", "digits", "--imbalance", "20", "--epochs", "1", "--workers", "2"]
        with open(out / "said", "w") as said, redirect_stderr(said):
            status = main([*words, "--out", str(out / "run")])
        os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status, (out / "said").read_text()


def test_too_few_open_files_are_said_before_workers_start(tmp_path):
    def prepare():
        resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))

    status, said = refused(tmp_path, prepare)
    assert status == 1
    assert said.count("\n") == 1
    assert "the limit is 32: raise it (ulimit -n 1024), or use fewer --workers" in said
    assert said.startswith("ltfast: error: --workers 2 needs ")


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/shm is Linux's")
@pytest.mark.parametrize("memory", ["none", "little"])
def test_too_little_shared_memory_is_said_before_workers_start(memory, tmp_path, monkeypatch):
    def none(*arguments):
        raise FileNotFoundError(2, "No such file or directory")

    free = SimpleNamespace(f_bavail=1, f_frsize=4096)
    if memory == "none":
        monkeypatch.setattr(multiprocessing, "Lock", none)
    else:
        monkeypatch.setattr(os, "statvfs", lambda path: free)
    status, said = refused(tmp_path, lambda: None)
    assert status == 1
    assert said.count("\n") == 1
    assert "in Docker, start the container with a larger --shm-size; or use fewer --workers, 0 needs none" in said
    if memory == "little":
        assert "--workers 2 needs 2 MiB of shared memory for batches loaded ahead, and /dev/shm has 0 MiB" in said
    else:
        assert "--workers 2 needs shared memory, and there is none ([Errno 2] No such file or directory)" in said
