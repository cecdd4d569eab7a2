"""Tests whole runs of `ltfast train --compile` with the compiler that they use."""

import os
import signal

import pytest
import torch
import torch._dynamo
import torch._inductor.config
from torch import nn

from ltfast.engine import Batches, Optimisation, Plan, RunSettings, Stage
from ltfast.engine.accelerator import make_accelerator
from ltfast.engine.checkpoint import load_checkpoint
from ltfast.engine.loop import train
from ltfast.engine.seeding import seed_everything
from ltfast.losses import BalancedBCELoss

COUNTS = [8, 4, 4]


class PointBatches(Batches):
    def __len__(self):
        return 4

    def epoch(self, epoch, skip):
        for number in range(skip, 4):
            generator = torch.Generator().manual_seed(10 * epoch + number)
            yield torch.randn(6, 5, generator=generator), torch.randint(3, (6,), generator=generator)

    def close(self):
        pass


class DroppedLinear(Stage):
    """Draws random numbers, which the compiler could do differently from eager mode or from one compilation to the
    next."""

    def __init__(self, on_step):
        super().__init__("train", PointBatches(), Optimisation(epochs=2, batch_size=6, lr=0.1))
        self.dropout, self.linear, self.loss = nn.Dropout(0.5), nn.Linear(5, 3), BalancedBCELoss(COUNTS)
        self.on_step = on_step

    def forward(self, batch):
        points, labels = batch
        return self.loss(self.linear(self.dropout(points)), labels), {}

    def after_step(self):
        self.on_step()

    def predict(self, *views):
        return self.linear(views[0])


def run(out, on_step=lambda: None, **settings):
    seed_everything(0)
    plan = Plan([DroppedLinear(on_step)], [next(PointBatches().epoch(9, 0))])
    return train(
        plan,
        run=RunSettings(**settings),
        settings={},
        facts={"class_names": ["a", "b", "c"]},
        class_counts=COUNTS,
        groups={"many": [0], "medium": [1], "few": [2]},
        out=out,
        accelerator=make_accelerator(settings.get("precision", "fp32")),
    )


@pytest.mark.slow
@torch._inductor.config.patch(compile_threads=1)
def test_a_compiled_run_continues_with_the_same_bits_and_eager_names(tmp_path):
    torch._dynamo.utils.counters.clear()
    compiled = {"compile": True, "precision": "bf16", "accumulate": 2}
    assert run(tmp_path / "whole", **compiled)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    steps = []

    def stop_at_the_third():
        steps.append(len(steps))
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    assert run(tmp_path / "cut", stop_at_the_third, **compiled) is None
    assert run(tmp_path / "cut", **compiled)
    assert run(tmp_path / "eager", precision="bf16", accumulate=2)
    whole, cut, eager = (load_checkpoint(tmp_path / name)["model"] for name in ("whole", "cut", "eager"))
    assert whole.keys() == cut.keys() == eager.keys()
    assert all(torch.equal(value, cut[name]) for name, value in whole.items())
