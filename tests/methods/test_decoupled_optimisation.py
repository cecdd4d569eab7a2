import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from torch import nn

import ltfast
from ltfast.cli import main
from ltfast.data import class_groups
from ltfast.engine import RunSettings
from ltfast.engine.accelerator import make_accelerator
from ltfast.engine.loop import train
from ltfast.losses import CompensationLoss
from ltfast.methods import METHODS, BuildContext, settings_of
from ltfast.methods.decoupled_optimisation import CANDIDATES, Aggregation, PruningStage
from ltfast.models import SubModels
from methods.conftest import check_killed_runs, tiny_bundle

RECIPES = sorted((Path(ltfast.__file__).parent / "recipes" / "do").glob("*.yaml"))
SMALL = {"batch_size": 5, "backbone": "digits_convnet", "epochs": 2, "later_epochs": 2, "prune_epochs": 2, "lr": 0.05}
COUNTS = (12, 6, 2)
MINIMA = (10, 4)  # a class a group


def build(data=None, run=None, **values):
    torch.manual_seed(0)
    settings = settings_of("do", {**SMALL, "group_minima": MINIMA, **values})
    return METHODS["do"].build(settings, data or tiny_bundle(COUNTS), BuildContext(run or RunSettings(seed=3)))


def trained(plan, out, **run):
    train(
        plan,
        run=RunSettings(**run),
        settings={},
        facts={"class_names": ["a", "b", "c"]},
        class_counts=COUNTS,
        groups={"many": [0], "medium": [1], "few": [2]},
        out=out,
        accelerator=make_accelerator("fp32"),
    )
    return plan


@pytest.mark.slow
@pytest.mark.usefixtures("_command_line")
def test_all_stages_freeze_and_sub_models_stay(tmp_path, monkeypatch):
    """Momentum, weight decay and BatchNorm have their way, and nothing that a stage has kept moves."""
    plan = build(prune=(0.5, 0.6))
    assert [stage.name for stage in plan.stages] == ["many", "many_pruned", "medium", "medium_pruned", "few"]
    model = plan.stages[0].network
    images = torch.randn(4, 1, 8, 8)
    seen = {}

    begin = SubModels.begin

    def remember(self, number, fresh):
        begin(self, number, fresh)
        kept = [
            (owner < number, w.detach().clone()) for owner, w in zip(self.owners(), self.weights.values(), strict=True)
        ]
        with torch.no_grad():
            seen[number] = kept, self.eval()(images, number - 1)

    monkeypatch.setattr(SubModels, "begin", remember)
    trained(plan, tmp_path)
    assert sorted(seen) == [2, 3]
    model.eval()
    for number, (kept, scores) in seen.items():
        share = sum(int(mask.sum()) for mask, _ in kept) / sum(mask.numel() for mask, _ in kept)
        assert share == pytest.approx({2: 0.5, 3: 0.7}[number], abs=1e-3)
        for (mask, before), weight in zip(kept, model.weights.values(), strict=True):
            assert torch.equal(weight[mask], before[mask])
        with torch.no_grad():
            assert torch.equal(model(images, number - 1), scores)
    assert (tmp_path / "metrics.json").exists()


def test_gradual_pruning_follows_the_cubic_schedule():
    stage = build(prune=(0.8, 0.5), prune_epochs=4).stages[1]
    stage.start()
    total = sum(w.numel() for w in stage.network.weights.values())
    for epoch in range(4):
        stage.epoch = epoch
        stage.start_epoch()
        pruned = sum(int((owner > 1).sum()) for owner in stage.network.owners())
        assert pruned == round(total * 0.8 * (1 - (1 - (epoch + 1) / 4) ** 3))
    assert pruned == round(0.8 * total)


def test_the_search_stops_before_the_steepest_fall(monkeypatch):
    stage = build().stages[1]
    accuracy = dict(zip(CANDIDATES, (0.9, 0.1, 0.9, 0.85, 0.84, 0.5, 0.45, 0.4, 0.3, 0.3), strict=True))
    monkeypatch.setattr(PruningStage, "_importance", lambda self: None)
    monkeypatch.setattr(PruningStage, "_accuracy", lambda self, importance, share: accuracy[share])
    stage.start()
    assert float(stage.share) == 0.4  # not 0: it would leave nothing to the next stage
    accuracy.update(dict.fromkeys(CANDIDATES, 0.9))
    stage.start()
    assert float(stage.share) == 0.9


def test_the_search_looks_at_accuracy():
    stage = build().stages[1]
    stage.start()
    assert float(stage.share) in CANDIDATES[1:]
    importance = stage._importance()
    labels = torch.cat([labels for _, labels in stage.images([0, 1, 2])])
    with torch.no_grad():
        right = [stage.network(images).argmax(1) == labels for images, labels in stage.images([0, 1, 2])]
    assert stage._accuracy(importance, 0.0) == pytest.approx(float(torch.cat(right).float().mean()))
    assert sorted(labels.tolist()) == tiny_bundle(COUNTS).train.labels.tolist()


def test_importance_is_of_the_group_s_images():
    stage = build().stages[1]
    weight = stage.network.weights["head.weight"]
    expected = torch.zeros_like(weight)
    batches = list(stage.images([0]))
    assert len(batches) == 3
    for images, labels in batches:
        assert (labels == 0).all()
        (gradient,) = torch.autograd.grad(stage.loss(stage.network.eval()(images), labels), weight)
        expected += (weight.detach() * gradient) ** 2 / 3
    torch.testing.assert_close(stage._importance()[list(stage.network.weights).index("head.weight")], expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["instance", "group", "average"])
def test_aggregation(kind, tmp_path):
    plan = trained(build(aggregate=kind, prune=(0.5, 0.5)), tmp_path)
    final = plan.final.eval()
    assert isinstance(final, Aggregation)
    batches = list(plan.test)
    with torch.no_grad():
        final.adapt(batch[:-1] for batch in batches)
        for *views, _ in batches:
            assert len(views) == 3
            weights = final.weights(*views)
            assert weights.shape == (len(views[0]), 3)
            torch.testing.assert_close(weights.sum(1), torch.ones(len(weights)))
            expected = (weights[..., None] * final.network.scores(views[0]).softmax(-1)).sum(1)
            torch.testing.assert_close(final.predict(*views).exp(), expected)
            if kind == "average":
                assert (weights == 1 / 3).all()
            if kind == "group":
                assert len(weights.unique(dim=0)) <= 3
            if kind == "instance":
                assert len(weights.unique(dim=0)) > 3


@pytest.mark.parametrize(
    ("minima", "order"), [((10, 4), (2, 0, 1)), ((10,), "auto"), ((10,), (1, 0)), ((12, 7, 6), (0, 2, 1, 3))]
)
def test_any_groups_and_any_order(minima, order, tmp_path):
    data = tiny_bundle((12, 6, 2)) if len(minima) < 3 else tiny_bundle((12, 7, 6, 2))
    torch.manual_seed(0)
    values = {**SMALL, "epochs": 1, "later_epochs": 1, "prune_epochs": 1, "group_minima": minima, "order": order}
    plan = METHODS["do"].build(settings_of("do", values), data, BuildContext())
    assert len(plan.stages) == 2 * len(minima) + 1
    groups = class_groups(data.class_counts, minima)
    names = list(groups)
    taken = [names[i] for i in (range(len(names)) if order == "auto" else order)]
    assert [stage.name for stage in plan.stages[::2]] == taken
    # the first and the last group have their roles wherever they come
    for name, stage in zip(taken, plan.stages[::2], strict=True):
        alpha = (-stage.loss.shift).exp()
        if name == names[0]:
            assert (alpha == 1).all()
        elif name == names[-1]:
            assert alpha.argmax() == len(alpha) - 1
        else:
            assert alpha.argmax() == groups[name][0]


def test_groups_without_classes_have_no_stage():
    """CIFAR-10 at imbalance 100 has such a group: its rarest class has 50 images."""
    plan = build(group_minima=(10, 2))
    assert [stage.name for stage in plan.stages] == ["many", "many_pruned", "medium"]
    assert plan.stages[2].loss.shift.argmin() == 2  # the last has the reversed tail
    assert plan.final.network.stages == 2
    with pytest.warns(UserWarning, match="all classes are in one group"):
        plan = build(group_minima=(2, 1))
    assert [stage.name for stage in plan.stages] == ["many"]
    images = next(iter(plan.test))[:3]
    with torch.no_grad():
        scores = plan.final.eval().predict(*images)
        torch.testing.assert_close(scores.exp(), plan.stages[0].predict(images[0]).softmax(1))


def test_sampling_and_loss_of_each_stage():
    plan = build()
    draws = [stage.batches.batches.start_draw for stage in plan.stages]
    assert draws == [0, 40, 80, 120, 160]
    labels = [torch.cat([y for e in range(20) for _, y in stage.batches.epoch(e, 0)]) for stage in plan.stages[::2]]
    shares = [torch.bincount(y, minlength=3) / len(y) for y in labels]
    torch.testing.assert_close(shares[0], torch.tensor([0.6, 0.3, 0.1]))
    assert abs(shares[1][1] - 0.8) < 0.1
    assert shares[2].argmax() == 2
    assert [type(stage.loss) for stage in plan.stages] == [CompensationLoss] * 5
    plain = build(loss="cross_entropy", sampler="class_balanced")
    assert all(type(stage.loss) is nn.CrossEntropyLoss for stage in plain.stages)
    labels = torch.cat([y for e in range(20) for _, y in plain.stages[2].batches.epoch(e, 0)])
    assert (torch.bincount(labels, minlength=3) / len(labels) - 1 / 3).abs().max() < 0.1


DIGITS = ["train", "--config", "do/digits", "--epochs", "2", "--later-epochs", "1", "--prune-epochs", "2"]


def finished(words, out):
    """The folder of a run that has come to its end."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert main([*words, "--out", str(out)]) == 0
    torch.set_num_threads(threads)
    return out


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    return finished(DIGITS, tmp_path_factory.mktemp("do"))


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory):
    """A run without sub-models."""
    return finished(["train", "--config", "ce/digits", "--epochs", "1"], tmp_path_factory.mktemp("ce"))


@pytest.mark.slow
@pytest.mark.usefixtures("_command_line")
def test_killed_inside_and_between_stages_ends_with_the_same_bits(digits_run, tmp_path):
    """It is killed inside the first stage, inside its pruning, inside the second, and before the last, of 32 steps."""
    check_killed_runs(digits_run, DIGITS, (3, 9, 8, 12), ["many", "many_pruned", "medium", "few"], tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("_command_line")
def test_eval_aggregates_as_asked(digits_run, plain_run, tmp_path, capsys):
    results = {}
    for kind in (None, "instance", "group", "average"):
        words = [] if kind is None else ["--aggregate", kind]
        assert main(["eval", "--checkpoint", str(digits_run), "--out", str(tmp_path / "eval.json"), *words]) == 0
        results[kind] = json.loads((tmp_path / "eval.json").read_text())["per_class"]
    metrics = json.loads((digits_run / "metrics.json").read_text())
    assert results[None] == results["instance"] == metrics["per_class"]
    assert results["average"] != results["instance"]
    capsys.readouterr()
    assert main(["eval", "--checkpoint", str(plain_run), "--aggregate", "group"]) == 2
    assert "--aggregate: expected none, since method 'ce' has no sub-models, got 'group'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("_command_line")
def test_importance_is_reported(digits_run, plain_run, tmp_path, capsys):
    runs = [str(digits_run), str(plain_run)]
    out = tmp_path / "picture.png"
    assert main(["report", "importance", *runs, "--out", str(out), "--images", "30", "--per-class"]) == 0
    shown = capsys.readouterr().out
    assert "importance of a parameter" in shown
    assert "sub-models" in shown
    assert out.read_bytes()[:4] == b"\x89PNG"
    rows = json.loads(out.with_suffix(".json").read_text())
    assert [row["method"] for row in rows.values()] == ["do", "ce"]
    for row in rows.values():
        assert set(row["importance"]) == {"many", "medium", "few"}
        assert all(value > 0 for value in row["importance"].values())
        assert len(row["per_class"]) == 10
    weights = rows[runs[0]]["weights"]
    assert rows[runs[1]]["weights"] is None
    assert all(len(value) == 3 and sum(value) == pytest.approx(1) for value in weights.values())
    assert main(["report", "importance", runs[0], "--out", str(tmp_path / "picture.txt")]) == 2
    assert "--out: expected the name of a .png, .pdf or .svg file" in capsys.readouterr().err
    assert main(["report", "importance", str(tmp_path / "nothing"), "--out", str(out)]) == 2


@pytest.mark.filterwarnings("ignore:all classes are in one group")  # in the lists' tiny stand-in
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_build(path, like_recipe):
    recipe = yaml.safe_load(path.read_text())
    names = {field.name for field in fields(METHODS["do"].settings)}
    values = {name: value for name, value in recipe.items() if name in names}
    values |= {"batch_size": 2, "prune": "auto", "group_minima": (3,)}
    if values.get("backbone") == "resnet50":
        values["backbone"] = "resnet18"
    settings = settings_of("do", {**values})
    plan = METHODS["do"].build(settings, like_recipe(recipe), BuildContext())
    for stage in plan.stages:
        assert stage(next(stage.batches.epoch(0, 0)))[0].isfinite()
        stage.optimisation.make_scheduler(stage.optimizer(), 10)
    if path.stem != "digits":
        assert (recipe["epochs"], recipe["later_epochs"], recipe["lr"], recipe["batch_size"]) == (100, 50, 0.02, 256)
        assert recipe["later_lr"] == (0.002 if path.stem == "imagenet-lt" else 0.005)


def test_recipes_are_all_there():
    assert [path.stem for path in RECIPES] == ["cifar10-lt", "cifar100-lt", "digits", "imagenet-lt"]


def test_schedules_of_later_stages():
    settings = settings_of("do", {"epochs": 200, "schedule": "multistep", "milestones": (80, 160), "warmup_epochs": 5})
    later = settings.of_stage(1)
    assert (later.epochs, later.milestones, later.warmup_epochs) == (100, (80,), 0)
    assert later.lr == pytest.approx(0.01)
    assert settings.of_stage(0).milestones == (80, 160)
    short = settings_of("do", {"epochs": 170, "schedule": "multistep", "milestones": (160,)})
    assert short.of_stage(1).schedule == "constant"
    assert settings.of_pruning().schedule == "constant"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("later_epochs", 0, "later_epochs: expected at least 1, or auto, got 0"),
        ("later_lr", 0.0, "later_lr: expected a positive number, or auto, got 0.0"),
        ("group_minima", (), "group_minima: expected falling numbers of images"),
        ("group_minima", (4, 10), "group_minima: expected falling numbers of images"),
        ("prune", (0.5,), r"prune: expected 2, one for each group with classes but the last \(many, medium, few\)"),
        ("order", (0, 1), "order: expected each of 0 to 2 once"),
        ("rho", 1.0, r"rho: expected a number in \(0, 1\), got 1.0"),
        ("prune", (0.5, 1.0), r"prune: expected shares in \(0, 1\)"),
        ("prune_epochs", 0, "prune_epochs: expected at least 1, got 0"),
    ],
)
def test_bad_settings_are_named(name, value, message):
    with pytest.raises(ValueError, match=message):
        build(**{name: value})
