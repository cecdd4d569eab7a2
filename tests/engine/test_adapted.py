"""Runs that adapt a backbone which stays as it was."""

import pytest
import torch
import toy
from safetensors.torch import load_file
from torch import nn

from fixtures import undrawn_pictures  # noqa: F401
from ltfast.engine import Adapted, Plan
from ltfast.engine.checkpoint import CheckpointError, load_checkpoint, load_weights


def adapted_plan(recalled, epochs=1):
    plan = toy.toy_plan(epochs=epochs)
    plan.stages[0].freeze = True
    network = nn.ModuleDict({"encoder": plan.stages[0].encoder, "classifier": plan.stages[1].classifier})

    def recall():
        recalled.append(True)
        plan.stages[0].encoder.load_state_dict(toy.toy_plan().stages[0].encoder.state_dict())

    return Plan(plan.stages, plan.test, adapted=Adapted(network, network["encoder"], recall))


def test_a_finished_run_keeps_what_adapts_the_backbone(tmp_path):
    recalled = []
    plan = adapted_plan(recalled)
    toy.toy_train(tmp_path, plan)
    saved = load_checkpoint(tmp_path)
    assert not saved["whole"]
    assert not any(".encoder." in name for name in saved["model"])
    weights = load_file(tmp_path / "weights.safetensors")
    assert weights.keys() == {"classifier.weight", "classifier.bias"}
    assert torch.equal(weights["classifier.weight"], plan.stages[1].classifier.weight)
    assert not recalled
    other = adapted_plan(recalled)
    with torch.no_grad():
        other.stages[0].encoder[1].weight.zero_()
    load_weights(tmp_path, other, saved["model"])
    assert recalled == [True]
    for mine, theirs in zip(other.stages, plan.stages, strict=True):
        assert all(torch.equal(value, mine.state_dict()[name]) for name, value in theirs.state_dict().items())


def test_a_run_that_is_not_finished_keeps_everything(tmp_path):
    recalled = []
    plan = adapted_plan(recalled)
    plan.stages[1].batches.points[:] = torch.nan
    with pytest.raises(Exception, match="the loss is nan"):
        toy.toy_train(tmp_path, plan)
    saved = load_checkpoint(tmp_path)
    assert saved["whole"]
    assert any(".encoder." in name for name in saved["model"])
    assert not (tmp_path / "weights.safetensors").exists()
    load_weights(tmp_path, adapted_plan(recalled), saved["model"])
    assert not recalled


def test_weights_of_another_network_are_refused(tmp_path):
    toy.toy_train(tmp_path, adapted_plan([]))
    state = load_checkpoint(tmp_path)["model"]
    state["0.classifier.weight"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match="does not fit this version's model"):
        load_weights(tmp_path, adapted_plan([]), state)
    del state["0.classifier.weight"]
    with pytest.raises(CheckpointError, match="does not fit this version's model"):
        load_weights(tmp_path, adapted_plan([]), state)
