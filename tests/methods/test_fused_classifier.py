"""`--fused-classifier`: a method trains the same with and without the class scores in memory."""

import json

import pytest
import torch
from torch import nn

from ltfast.cli import main
from ltfast.engine import RunSettings
from ltfast.engine.accelerator import make_accelerator
from ltfast.engine.checkpoint import load_checkpoint
from ltfast.engine.timing import time_losses
from ltfast.errors import SettingError
from ltfast.losses import AGCLLoss, LDAMLoss, LinearAGCLLoss
from ltfast.methods import BuildContext, fused_classifier
from ltfast.methods.fused_classifier import LARGE, classifier_loss, fused_loss, fused_stages
from ltfast.methods.supervised_stage import SupervisedStage
from ltfast.models import CosineClassifier
from whole_steps.stages import first_batches, make_plan, seed

CASES = {
    "ce cross_entropy": ("ce", "train", {}),
    "ce logit_adjusted": ("ce", "train", {"loss": "logit_adjusted"}),
    "ce balanced_bce": ("ce", "train", {"loss": "balanced_bce"}),
    "ce agcl": ("ce", "train", {"loss": "agcl"}),
    "proco linear": ("proco", "train", {}),
    "proco cosine": ("proco", "train", {"classifier": "cosine"}),
    "dscl": ("dscl", "classifier", {}),
    "livt balanced_bce": ("livt", "finetune", {}),
    "livt bce": ("livt", "finetune", {"loss": "bce", "mixup": 0.0, "cutmix": 0.0}),
    "livt cross_entropy": ("livt", "finetune", {"loss": "cross_entropy"}),
    "lift": ("lift", "adapt", {}),
    "lift learned": ("lift", "adapt", {"scale": "learned", "loss": "cross_entropy"}),
    "lpt shared": ("lpt", "shared", {}),
    "lpt group": ("lpt", "group", {}),
    "do many": ("do", "many", {}),
    "do pruned": ("do", "many_pruned", {}),
    "do few": ("do", "few", {}),
    "do cross_entropy": ("do", "medium", {"loss": "cross_entropy"}),
}


def make_stage(name, chosen):
    method, stage_name, values = CASES[name]
    plan = make_plan(method, fused_classifier=chosen, **values)
    (stage,) = (stage for stage in plan.stages if stage.name == stage_name)
    for parameter in stage.parameters():
        parameter.requires_grad_(False)
    for parameter in stage.trained():
        parameter.requires_grad_(True)
    return stage.train()


@pytest.mark.parametrize("name", CASES)
def test_loss_gradients_and_state_are_the_same(name):
    outcomes = []
    for chosen in ("off", "on"):
        stage = make_stage(name, chosen)
        assert fused_stages([stage]) == ([stage.name] if chosen == "on" else [])
        (batch,) = first_batches(stage, 1)
        seed(4)
        loss, logged = stage(stage.prepare(batch))
        loss.backward()
        gradients = {key: p.grad for key, p in stage.named_parameters() if p.grad is not None}
        assert len(gradients) == sum(1 for _ in stage.trained())
        outcomes.append((loss.detach(), logged, gradients, dict(stage.state_dict())))
    torch.testing.assert_close(*outcomes, rtol=1e-4, atol=2e-6)


def test_the_importance_is_the_same():
    found = [make_stage("do pruned", chosen)._importance() for chosen in ("off", "on")]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("bias", [True, False])
def test_a_scale_of_the_scores(scale, bias):
    torch.manual_seed(0)
    head, features, labels = nn.Linear(6, 4, bias=bias), torch.randn(5, 6, requires_grad=True), torch.arange(5) % 4
    tensors = [features, *head.parameters()]
    results = []
    for chosen in ("off", "on"):
        context = BuildContext(RunSettings(fused_classifier=chosen))
        loss = fused_loss(nn.CrossEntropyLoss(label_smoothing=0.1), context, rows=5, num_classes=4)
        value = classifier_loss(loss, head, features, labels, scale=scale)
        results.append((value, *torch.autograd.grad(value, tensors)))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("length", [1e-30, 1e-13, 1.0, 1e30])
def test_cosines_are_those_of_the_classifier(length):
    """Also where a row is shorter than the least length that F.normalize divides by."""
    torch.manual_seed(0)
    head, labels = CosineClassifier(6, 4), torch.arange(5) % 4
    features = (length * torch.randn(5, 6)).requires_grad_()
    head.weight.data[1] *= 1e-13
    results = []
    for chosen in ("off", "on"):
        context = BuildContext(RunSettings(fused_classifier=chosen))
        loss = fused_loss(AGCLLoss([4, 3, 2, 1]), context, rows=5, num_classes=4)
        torch.manual_seed(1)  # of the noise
        value = classifier_loss(loss, head, features, labels)
        of_features, of_weight = torch.autograd.grad(value, [features, head.weight])
        results.append((value, of_features * length, of_weight * head.weight.detach().norm(dim=1, keepdim=True)))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_auto_goes_by_the_number_of_scores():
    loss = AGCLLoss([3, 2, 1])
    for chosen, rows, fused in (
        ("auto", LARGE // 1024 - 1, False),
        ("auto", LARGE // 1024, True),
        ("off", LARGE, False),
        ("on", 1, True),
    ):
        context = BuildContext(RunSettings(fused_classifier=chosen))
        assert isinstance(fused_loss(loss, context, rows=rows, num_classes=1024), LinearAGCLLoss) == fused
    ldam = LDAMLoss([3, 2, 1])
    assert fused_loss(ldam, BuildContext(), rows=LARGE, num_classes=1024) is ldam


def test_a_loss_without_such_a_form_is_refused(tmp_path, capsys):
    with pytest.raises(SettingError, match="fused_classifier: expected auto or off for LDAMLoss"):
        make_plan("ce", fused_classifier="on", loss="ldam")
    make_plan("ce", fused_classifier="auto", loss="ldam")
    assert main(["train", "--out", "unused", "--loss", "ldam", "--fused-classifier", "on"]) == 2
    expected = "--fused-classifier: expected auto or off for LDAMLoss, which has no form without class scores, got 'on'"
    assert expected in capsys.readouterr().err
    recipe = tmp_path / "r.yaml"
    recipe.write_text('data: digits\nfused_classifier: "on"\n')
    assert main(["train", "--out", "unused", "--loss", "ldam", "--config", str(recipe)]) == 2
    assert f"--config {recipe}:2: {expected.removeprefix('--').replace('-', '_', 1)}" in capsys.readouterr().err
    with pytest.raises(SettingError, match="fused_classifier: expected auto, on or off, got 'yes'"):
        RunSettings(fused_classifier="yes")


@pytest.mark.parametrize("name", ["ce agcl", "proco cosine", "livt balanced_bce", "lpt group"])
def test_losses_are_timed(name):
    stage = make_stage(name, "on")
    times = time_losses(stage, first_batches(stage, 1)[0], make_accelerator("fp32"))
    assert times.loss_ms > 0
    assert times.step_images == len(first_batches(stage, 1)[0][-1])


@pytest.mark.usefixtures("_command_line")
def test_a_run_goes_on_and_is_evaluated_with_the_other_value(tmp_path, monkeypatch, capsys):
    command = ["train", "--data", "digits", "--imbalance", "50", "--epochs", "2", "--loss", "agcl"]

    def stop(stage):
        if stage.epoch == 1:
            raise RuntimeError("stopped here")

    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert main([*command, "--fused-classifier", "off", "--out", str(whole)]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(SupervisedStage, "start_epoch", stop)
        assert main([*command, "--fused-classifier", "on", "--out", str(resumed)]) == 1
    monkeypatch.setattr(fused_classifier, "LARGE", 1)
    capsys.readouterr()
    assert main([*command, "--out", str(resumed)]) == 0
    output = capsys.readouterr().out
    assert "chosen by auto: --fused-classifier on, for train" in output
    assert "resuming train at epoch 2" in output
    one, other = (load_checkpoint(folder)["model"] for folder in (whole, resumed))
    torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-3)
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (whole, resumed)]
    assert metrics[0]["settings"] == metrics[1]["settings"]
    assert metrics[1]["loss_ms"] > 0
    assert main([*command, "--fused-classifier", "off", "--out", str(resumed)]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert main(["eval", "--checkpoint", str(resumed)]) == 0
