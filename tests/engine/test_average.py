"""The moving average of a stage's weights is what is evaluated, kept and trained further."""

from dataclasses import replace

import pytest
import torch
import toy
from test_selection import Killed, killed_after, observed, validated

from fixtures import undrawn_pictures  # noqa: F401
from ltfast.engine.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from ltfast.errors import SettingError


def averages(plan, decay):
    """The averages of each stage by its steps, from a plain computation; filled while the plan is trained."""
    found = {}
    for stage in plan.stages:
        found[stage.name] = []

        def on_step(stage):
            own = found[stage.name]
            state = {name: value.detach().clone() for name, value in stage.state_dict().items()}
            before, step = own[-1] if own else state, len(own)
            share = min(1 - (1 + step) ** (-2 / 3), decay) if step else 0.0  # timm's warm-up
            averaged = [name for name, p in stage.named_parameters() if p.requires_grad]
            averaged += [name for name in state if "running_" in name]
            own.append({**state, **{name: share * before[name] + (1 - share) * state[name] for name in averaged}})

        stage.on_step = on_step
    return found


@pytest.mark.parametrize("validation", [False, True])
def test_the_average_is_evaluated_and_kept(tmp_path, validation, monkeypatch):
    plan = validated()
    plan = plan if validation else replace(plan, validation=None)
    expected = averages(plan, 0.9)
    seen = observed(monkeypatch)
    metrics = toy.toy_train(tmp_path, plan, ema=0.9, keep="best" if validation else "last")
    saved = load_checkpoint(tmp_path)
    assert "average" not in saved
    for number, (name, steps) in enumerate(expected.items()):
        kept = metrics["epochs"][name]["kept"] if validation else 6
        for key, value in steps[10 * kept - 1].items():
            torch.testing.assert_close(
                saved["model"][f"{number}.{key}"], value, msg=lambda text, key=key: f"{key}: {text}"
            )
        for row in (row for row in seen if row[0] == name):  # what was evaluated
            for key, value in steps[10 * row[1] - 1].items():
                torch.testing.assert_close(row[3][key], value)
    # the second stage, which does not train the encoder, starts from the average
    encoder = [key for key in saved["model"] if key.startswith("1.encoder.")]
    assert encoder
    assert all(torch.equal(saved["model"][key], saved["model"][f"0{key[1:]}"]) for key in encoder)
    # the accuracy is that of the weights in the checkpoint
    stage = plan.stages[1]
    stage.load_state_dict({key[2:]: value for key, value in saved["model"].items() if key.startswith("1.")})
    stage.eval()
    right = torch.cat([stage.predict(x).argmax(1) == y for x, y in plan.test])
    assert metrics["top1"] == pytest.approx(100 * right.float().mean().item())


def test_without_a_decay_nothing_is_averaged(tmp_path):
    toy.toy_train(tmp_path / "plain")
    toy.toy_train(tmp_path / "averaged", ema=0.9)
    assert toy.digest(tmp_path / "plain") != toy.digest(tmp_path / "averaged")


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"keep": "best", "patience": 3}])
def test_a_killed_run_ends_with_the_same_bits(tmp_path, settings):
    def plan(**options):
        return validated(**options) if settings else replace(validated(**options), validation=None)

    toy.toy_train(tmp_path / "whole", plan(), ema=0.95, **settings)
    for number, minutes in ((13, 0), (17, 10), (25, 0)):  # a checkpoint at each step, or at each epoch
        run = {"ema": 0.95, "checkpoint_minutes": minutes, **settings}
        with pytest.raises(Killed):
            toy.toy_train(tmp_path / "cut", plan(on_step=killed_after(number)), **run)
    saved = load_checkpoint(tmp_path / "cut")
    assert "encoder.0.running_mean" in saved["average"]
    toy.toy_train(tmp_path / "cut", plan(), ema=0.95, **settings)
    assert toy.digest(tmp_path / "cut") == toy.digest(tmp_path / "whole")
    save_checkpoint(
        tmp_path / "cut" / "checkpoint.pt",
        {name: value for name, value in {**saved, "average": {}}.items() if name != "format"},
    )
    with pytest.raises(CheckpointError, match=r"average: expected the name "):
        toy.toy_train(tmp_path / "cut", plan(), ema=0.95, **settings)


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5])
def test_decays_out_of_range(decay, tmp_path):
    with pytest.raises(SettingError, match=r"^ema: expected a number above 0 and below 1, or none"):
        toy.toy_train(tmp_path, ema=decay)
