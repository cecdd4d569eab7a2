"""`ltfast tune`, with a stand-in for the clock: the launches run in Triton's interpreter."""

import json
from dataclasses import replace

import pytest
import torch

from ltfast.cli import main
from ops.conftest import NO_TRITON

pytestmark = pytest.mark.skipif(NO_TRITON is not None, reason=str(NO_TRITON))
CPU = torch.device("cpu")

if NO_TRITON is None:
    from ltfast.benchmark import tune
    from ltfast.ops.class_sums.launch import class_launch
    from ltfast.ops.core import tuned
    from ltfast.ops.core.bench import Case, Work
    from ltfast.ops.core.launch import Chip
    from ltfast.ops.taylor.launch import update_launch

    CHIP = Chip("nvidia", 132, "NVIDIA H999")


class Watch:
    """Takes a step to be the faster the fewer warps its launches have."""

    def __init__(self, step, sets, device):
        with tuned.trial(tuned._trial.forced) as trial:
            step(sets[0])
            self.warps = sum(trial.forced.get(key, launch).num_warps for key, (_, launch) in trial.asked.items())
        self.runs = 0

    def run(self, seconds, rounds):
        self.runs += rounds

    def timing(self):
        assert self.runs == tune.TURNS
        return type("Timing", (), {"median_ms": float(self.warps)})


def case(rule, arguments):
    """A case whose step asks a rule only."""
    return Case(
        "op", "small", "1", torch.float32, Work(1.0), lambda: (), {"ltfast": lambda: lambda _: rule(*arguments)}
    )


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tuned.forget()
    yield tuned.user_file(CHIP.name)
    monkeypatch.undo()
    tuned.forget()


@pytest.fixture
def answers(monkeypatch):
    cases = [case(class_launch, (500, CHIP)), case(class_launch, (512, CHIP)), case(update_launch, (CHIP,))]
    monkeypatch.setattr(tune.run, "select", lambda *_, **__: cases)
    return tune.tune(CPU, workers=0, clock=Watch)


def test_the_fastest_candidate_of_each_rule_wins(answers):
    by_rule = {answer.key: answer for answer in answers}
    assert list(by_rule) == [("class_sums.class_launch", "512"), ("taylor.update_launch", "")]
    sums, update = by_rule.values()
    assert (sums.rule.num_warps, sums.launch.num_warps, sums.changes["num_warps"]) == (4, 2, 2)
    assert (update.rule.num_warps, update.launch.num_warps, update.best_ms, update.rule_ms) == (8, 4, 4, 8)
    assert update.tried == 8


def test_launches_use_what_was_found(answers, cache, monkeypatch):
    monkeypatch.setattr(tune, "chip_of", lambda _: CHIP)
    before = class_launch(500, CHIP), class_launch(100, CHIP), update_launch(CHIP)
    tune.write(cache, CPU, answers)
    assert class_launch(500, CHIP) == replace(before[0], **answers[0].changes)
    assert class_launch(300, CHIP).num_warps == 2  # of the same power of two
    assert class_launch(100, CHIP) == before[1]
    assert update_launch(CHIP).num_warps == 4
    assert update_launch(Chip("nvidia", 132, "another")) == before[2]
    torch.use_deterministic_algorithms(True)
    try:
        assert (class_launch(500, CHIP), update_launch(CHIP)) == (before[0], before[2])
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_users_file_counts_more_than_the_shipped_one(answers, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "chip_of", lambda _: CHIP)
    monkeypatch.setattr(tuned, "SHIPPED", tmp_path / "shipped")
    shipped = tmp_path / "shipped" / cache.name
    tune.write(shipped, CPU, [replace(answers[0], launch=replace(answers[0].launch, num_warps=1)), answers[1]])
    assert class_launch(500, CHIP).num_warps == 1
    tune.write(cache, CPU, answers[:1])
    assert (class_launch(500, CHIP).num_warps, update_launch(CHIP).num_warps) == (2, 4)
    assert tuned.files(CHIP.name) == [cache, shipped]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:-3], "is not a file of launch settings"),
        (lambda content: content.replace('"versions"', '"version"'), "is not a file of launch settings: KeyError"),
        (lambda content: '{"versions": "2.0.0", "launches": []}', "is not a file of launch settings: ValueError"),
        (lambda content: content.replace(f'"{tuned.triton.__version__}"', '"2.0.0"'), "was made with .* triton 2.0.0,"),
        (lambda content: content.replace('"num_warps"', '"warps"'), "has no setting warps"),
    ],
)
def test_a_file_that_does_not_fit_is_named_and_not_used(answers, cache, monkeypatch, change, message):
    monkeypatch.setattr(tune, "chip_of", lambda _: CHIP)
    rule = class_launch(500, CHIP)
    tune.write(cache, CPU, answers[:1])
    cache.write_text(change(cache.read_text()))
    tuned.forget()
    with pytest.warns(UserWarning, match=message):
        assert class_launch(500, CHIP) == rule


def test_a_user_without_a_home_has_the_launches_of_the_rules(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    tuned.forget()
    assert tuned.files(CHIP.name) == []
    assert class_launch(500, CHIP).num_warps == 4
    tuned.forget()


def test_a_small_gain_is_taken_for_chance(monkeypatch):
    monkeypatch.setattr(tune.run, "select", lambda *_, **__: [case(update_launch, (CHIP,))])
    monkeypatch.setattr(tune, "GAIN", 0.4)
    (answer,) = tune.tune(CPU, workers=0, clock=Watch)
    assert answer.changes == {}


def test_a_candidate_that_does_not_run_is_left_out(monkeypatch):
    def watch(step, sets, device):
        if Watch(step, sets, device).warps == 4:
            raise RuntimeError("out of resources")
        return Watch(step, sets, device)

    monkeypatch.setattr(tune.run, "select", lambda *_, **__: [case(update_launch, (CHIP,))])
    (answer,) = tune.tune(CPU, workers=0, clock=watch)
    assert (answer.tried, answer.launch.num_warps) == (4, 8)


@pytest.mark.slow
def test_candidates_are_compiled_in_other_processes():
    (one,) = tune.run.select(CPU, ops=["class_sums"], shapes=["small"], peers=[])
    launch = class_launch(512, CHIP)
    tune._compile([tune.Question(one, ("class_sums.class_launch", "512"), (launch,) * 2)], CPU, 1)


def test_the_command_needs_a_gpu(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["tune"]) == 2
    assert "a GPU that PyTorch finds" in capsys.readouterr().err


@pytest.mark.gpu
def test_a_gpu_is_tuned(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert main(["tune", "--ops", "agcl", "--out", str(tmp_path / "found.json")]) == 0
    content = json.loads((tmp_path / "found.json").read_text())
    assert content["chip"] == torch.cuda.get_device_name()
    assert content["versions"] == tuned.versions()
    assert "agcl.row_launch" in capsys.readouterr().out
