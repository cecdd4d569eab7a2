"""If losses, gradients or weights are not finite, the run stops and keeps the last good checkpoint."""

import math

import pytest
import torch

from engine import toy
from faults.conftest import METHODS, tiny, tiny_npz
from ltfast.cli import main
from ltfast.engine.accelerator import make_accelerator
from ltfast.engine.checkpoint import load_checkpoint
from ltfast.engine.finite import TrainingError


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_diverges_says_where_and_keeps_no_bad_checkpoint(method, encoder, tmp_path, capsys):
    source = tiny_npz(tmp_path / "d.npz", [12, 8])
    rates = ["--lr", "1e30", *(["--pretrain-lr", "1e30"] if method == "livt" else [])]
    words = [*tiny(method, source, batch_size=4, encoder=encoder), *rates, "--schedule", "constant"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(("ltfast: error: the loss is ", "ltfast: error: a weight is not finite; "))
    assert "there is no checkpoint yet. A lower --lr often helps" in error
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The digest of a run without faults."""
    out = tmp_path_factory.mktemp("whole")
    toy.toy_train(out)
    return toy.digest(out)


@pytest.mark.parametrize(("where", "bad"), [("loss", math.nan), ("weight", math.inf)])
def test_the_last_good_checkpoint_is_kept_and_continued(where, bad, expected, tmp_path):
    steps = []

    def spoil(stage):
        steps.append(stage)
        if len(steps) == 17 and where == "weight":
            with torch.no_grad():
                stage.classifier.bias[0] = bad

    plan = toy.toy_plan(on_step=spoil)
    if where == "loss":
        plan.stages[0].loss.register_forward_hook(lambda module, inputs, loss: bad * loss if len(steps) == 17 else None)
    with pytest.raises(TrainingError, match=f"last good checkpoint is {tmp_path}/checkpoint.pt"):
        toy.toy_train(tmp_path, plan)
    saved = load_checkpoint(tmp_path)
    assert saved["position"] == {"stage": 0, "epoch": 1, "step": 0}
    assert all(value.isfinite().all() for value in saved["model"].values())
    toy.toy_train(tmp_path)
    assert toy.digest(tmp_path) == expected


def scaled(on_gradient):
    """The plan and the accelerator of a run whose losses are scaled as in fp16; a hook modifies a gradient."""
    accelerator = make_accelerator("fp32")
    accelerator.scaler = torch.amp.GradScaler("cpu")
    plan = toy.toy_plan()
    plan.stages[0].classifier.weight.requires_grad_(True).register_hook(on_gradient)
    return plan, accelerator


def test_a_gradient_that_overflows_once_costs_its_step_alone(tmp_path):
    seen = []

    def on_gradient(gradient):
        seen.append(gradient)
        return gradient * math.inf if len(seen) == 13 else None

    plan, accelerator = scaled(on_gradient)
    metrics = toy.toy_train(tmp_path, plan, accelerator=accelerator)
    assert metrics["top1"] > 60
    assert accelerator.scaler.get_scale() == 2**15
    assert all(value.isfinite().all() for value in load_checkpoint(tmp_path)["model"].values())


def test_a_gradient_that_always_overflows_stops_the_run(tmp_path):
    """Without the check, every step would be skipped silently."""
    seen = []

    def on_gradient(gradient):
        seen.append(gradient)
        return gradient * math.inf if len(seen) > 10 else None

    plan, accelerator = scaled(on_gradient)
    plan.stages[0].optimisation = toy.Optimisation(epochs=9, batch_size=4, lr=0.05)
    message = r"the gradient overflows at stage 'first', epoch 4, step 10, with the loss times 6e-05 too; the last good"
    with pytest.raises(TrainingError, match=message):
        toy.toy_train(tmp_path, plan, accelerator=accelerator)
    assert load_checkpoint(tmp_path)["position"] == {"stage": 0, "epoch": 3, "step": 0}
