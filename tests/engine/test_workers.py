"""Runs whose images are loaded by other processes."""

import multiprocessing
import os
import signal

import toy

from ltfast.data import class_groups, load
from ltfast.engine import RunSettings
from ltfast.engine.loop import make_accelerator, train
from ltfast.engine.seeding import seed_everything
from ltfast.methods import ce


def run_digits(out, hook=lambda step: None):
    """Two epochs on the digits; `hook` is called after each step with its number in this process."""
    run = RunSettings(workers=2, accumulate=2, precision="bf16")
    bundle = load("digits", imbalance=20)
    seed_everything(run.seed)
    plan = ce.build(ce.Settings(epochs=2, batch_size=32), bundle, run=run)
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


def test_workers_continue_with_the_same_bits_and_end_with_the_stage(tmp_path):
    loading = []
    run_digits(tmp_path / "whole", lambda step: loading.append(len(multiprocessing.active_children())))
    assert max(loading) == 2
    assert not multiprocessing.active_children()

    def stop(step):
        if step == len(loading) // 2 + 1:
            os.kill(os.getpid(), signal.SIGINT)

    assert run_digits(tmp_path / "cut", stop) is None
    assert not multiprocessing.active_children()
    assert run_digits(tmp_path / "cut") is not None
    assert toy.digest(tmp_path / "cut") == toy.digest(tmp_path / "whole")
