"""Several processes choose the same epoch, and keep the same weights."""

import hashlib
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from distributed.harness import run_processes


def train_toy(rank, processes, folder):
    sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
    import toy

    from ltfast.engine import report

    report.plot_per_class = lambda *_: None
    plan = toy.toy_plan(rank, processes, epochs=6)
    generator = torch.Generator().manual_seed(3)
    points, labels = torch.randn(61, 5, generator=generator), torch.randint(3, (61,), generator=generator)
    validation = list(zip(points[rank::processes].split(20), labels[rank::processes].split(20), strict=True))
    plan = replace(plan, validation=validation)
    from ltfast.engine.loop import _Run

    chosen = []
    log_epoch = _Run._log_epoch

    def watched(self, *arguments):
        chosen.append(dict(self.selection.epochs))
        return log_epoch(self, *arguments)

    _Run._log_epoch = watched
    toy.toy_train(folder, plan, keep="best", patience=3, ema=0.9)
    state = nn.ModuleList(plan.stages).state_dict()
    return chosen, hashlib.sha256(b"".join(value.numpy().tobytes() for value in state.values())).hexdigest()


@pytest.mark.slow
def test_processes_choose_the_same_epoch(tmp_path):
    first, second = run_processes(train_toy, 2, 2, str(tmp_path))
    assert first == second
    chosen, _ = first
    assert {name for name, ends in chosen[-1].items() if 1 <= ends["kept"] <= ends["trained"]} == {"first", "second"}
    assert chosen[-1]["first"]["kept"] < chosen[-1]["first"]["trained"]
