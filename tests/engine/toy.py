"""A two-stage method on synthetic points that uses all a stage may use: shared modules, a frozen part, a momentum
encoder, a buffer changed at each epoch, BatchNorm, dropout, and batches in random order. Too small to take any time."""

import hashlib
import os
import signal
import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from torch import nn

from ltfast.engine import Batches, Optimisation, Plan, RunSettings, Stage
from ltfast.engine.accelerator import make_accelerator
from ltfast.engine.checkpoint import load_checkpoint
from ltfast.engine.loop import train
from ltfast.engine.seeding import seed_everything

COUNTS = [24, 12, 4]
GROUPS = {"many": [0], "medium": [1], "few": [2]}
SETTINGS = {"method": "toy", "epochs": 3}


def points(counts, seed):
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    noise = torch.randn(len(labels), 5, generator=torch.Generator().manual_seed(seed))
    return noise + 4 * nn.functional.one_hot(labels, 5), labels


class ToyBatches(Batches):
    def __init__(self, size, shuffle=True, rank=0):
        self.size, self.shuffle, self.rank = size, shuffle, rank
        self.closed = 0
        self.points, self.labels = points(COUNTS, 0)

    def __len__(self):
        return len(self.labels) // self.size

    def epoch(self, epoch, skip):
        generator = torch.Generator().manual_seed(epoch + 100 * self.rank)
        order = (
            torch.randperm(len(self.labels), generator=generator) if self.shuffle else torch.arange(len(self.labels))
        )
        for i in range(skip, len(self)):
            chosen = order[i * self.size : (i + 1) * self.size]
            yield self.points[chosen], self.labels[chosen]

    def close(self):
        self.closed += 1


class ToyStage(Stage):
    def __init__(
        self, name, encoder, *, size=4, dropout=0.5, freeze=False, epochs=3, shuffle=True, on_step=None, rank=0
    ):
        super().__init__(name, ToyBatches(size, shuffle, rank), Optimisation(epochs=epochs, batch_size=size, lr=0.05))
        self.encoder, self.freeze, self.on_step = encoder, freeze, on_step
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(8, len(COUNTS))
        self.loss = nn.CrossEntropyLoss()
        self.momentum = nn.Linear(8, len(COUNTS))
        self.register_buffer("turns", torch.zeros(()))

    def trained(self):
        yield from self.classifier.parameters()
        if not self.freeze:
            yield from self.encoder.parameters()

    def start(self):
        nn.init.normal_(self.classifier.weight)

    def start_epoch(self):
        self.turns += torch.rand(())

    def forward(self, batch):
        x, y = batch
        logits = self.classifier(self.dropout(self.encoder(x))) * (1 + 0.1 * self.turns + 0.1 * self.epoch)
        return self.loss(logits, y), {"norm": logits.norm()}

    def after_step(self):
        with torch.no_grad():
            self.momentum.weight.lerp_(self.classifier.weight, 0.1)
        if self.on_step:
            self.on_step(self)

    def predict(self, *views):
        return self.classifier(self.encoder(views[0]))

    def losses(self):
        return [self.loss]


def toy_plan(rank=0, world_size=1, stages=2, norm=True, **kwargs):
    seed_everything(0)
    encoder = nn.Sequential(nn.BatchNorm1d(5) if norm else nn.Identity(), nn.Linear(5, 8), nn.ReLU())
    x, y = points([5, 4, 4], 1)
    test = list(zip(x[rank::world_size].split(3), y[rank::world_size].split(3), strict=True))
    first = ToyStage("first", encoder, rank=rank, **kwargs)
    second = ToyStage("second", encoder, freeze=True, rank=rank, **kwargs)
    return Plan([first, second][:stages], test)


def toy_train(out, plan=None, settings=SETTINGS, accelerator=None, **run):
    run_settings = RunSettings(**run)
    return train(
        plan or toy_plan(),
        run=run_settings,
        settings=settings,
        facts={"class_names": ["a", "b", "c"]},
        class_counts=COUNTS,
        groups=GROUPS,
        out=Path(out),
        accelerator=accelerator or make_accelerator(run_settings.precision),
    )


def digest(out):
    """A hash of all weights and buffers of a checkpoint."""
    state = load_checkpoint(Path(out))["model"]
    content = b"".join(name.encode() + value.numpy().tobytes() for name, value in state.items())
    return hashlib.sha256(content).hexdigest()


def killed_at_step(number):
    """A hook that kills the process, as `kill -9` does, after so many optimiser steps."""
    left = [number]

    def on_step(stage):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return on_step


def kill_in_save(number, how):
    """Arrange that the process is killed in its `number`-th save: before the rename, or with half the file written."""
    from ltfast.engine import checkpoint

    left = [number]
    replace, save = os.replace, torch.save

    def dying_replace(source, target):
        if str(target).endswith(checkpoint.CHECKPOINT):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    def dying_save(state, file):
        left[0] -= 1
        if left[0] == 0:
            path = Path(file.name)
            save(state, path)
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        save(state, file)

    if how == "rename":
        os.replace = dying_replace
    else:
        torch.save = dying_save


def main():
    """`toy.py OUT,MINUTES,KILL,... ...`: a run a KILL, in forked children: importing torch once saves time."""
    for scenario in sys.argv[1:]:
        out, minutes, *kills = scenario.split(",")
        for kill in kills:
            child = os.fork()
            if child == 0:
                how, _, number = kill.partition(":")
                if how in ("rename", "write"):
                    kill_in_save(int(number), how)
                on_step = killed_at_step(int(number)) if how == "step" else None
                toy_train(out, toy_plan(on_step=on_step), checkpoint_minutes=float(minutes))
                os._exit(0)
            _, status = os.waitpid(child, 0)
            print(f"child {out} {os.waitstatus_to_exitcode(status)}", flush=True)


if __name__ == "__main__":
    if "LOCAL_RANK" in os.environ:  # under torchrun
        accelerator = make_accelerator("fp32")
        rank, world_size = accelerator.process_index, accelerator.num_processes
        for stages in (1, 2):
            out, plan = Path(sys.argv[1], str(stages)), toy_plan(rank, world_size, stages)
            toy_train(out, plan, accelerator=accelerator)
            torch.save(dict(plan.stages[-1].named_buffers()), out / f"buffers{rank}.pt")
        accelerator.end_training()
    else:
        torch.set_num_threads(1)
        AcceleratorState._reset_state()
        main()
