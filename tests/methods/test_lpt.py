import json
import os
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.nn import functional as F

import ltfast
from ltfast.cli import main
from ltfast.data import load
from ltfast.engine import RunSettings
from ltfast.engine.accelerator import make_accelerator
from ltfast.engine.checkpoint import load_checkpoint
from ltfast.engine.loop import train
from ltfast.methods import METHODS, BuildContext, settings_of
from ltfast.methods.earlier_run import read_run
from ltfast.models import PromptedClassifier
from methods.conftest import check_killed_runs, tiny_bundle

RECIPES = sorted((Path(ltfast.__file__).parent / "recipes" / "lpt").glob("*.yaml"))
SMALL = {"batch_size": 4, "backbone": "vit_digits", "epochs": 2, "prompt_length": 3, "group_length": 2, "pool_size": 5}


def build(data=None, run=None, **values):
    torch.manual_seed(0)
    settings = settings_of("lpt", {**SMALL, **values})
    return METHODS["lpt"].build(settings, data or tiny_bundle(), BuildContext(run or RunSettings(seed=3)))


@pytest.mark.parametrize("init", [None, "a-livt-run"])  # features: the class token, the mean of the patches
def test_second_phase_is_two_whole_passes(init):
    """The first blocks run once for query and features; here they run twice."""
    network = build(group_blocks=3, init=init).stages[0].network
    assert network.transformer.backbone.global_pool == ("token" if init is None else "avg")
    assert isinstance(network.norm, torch.nn.Identity if init is None else torch.nn.BatchNorm1d)
    images = torch.randn(6, 1, 8, 8)
    for norm in (network.norm, network.group_norm):
        for statistic in norm.buffers():
            statistic.copy_(torch.rand(statistic.shape) + 0.5)
    network.eval()
    scores, indices, cosines = network.grouped(images)
    transformer, pool = network.transformer, network.pool
    query = network.norm(transformer(images))
    every = F.cosine_similarity(query[:, None], pool.keys[None], dim=-1)
    torch.testing.assert_close(cosines, every.topk(2, 1).values)
    assert torch.equal(indices, every.topk(2, 1).indices)
    tokens = transformer.run(transformer.embed(images)[0], 0, 1)
    features = transformer.features(transformer.run(tokens, 1, group=pool.prompts[indices].mean(1)))
    whole = network.head(network.group_norm(features))
    torch.testing.assert_close(scores, whole)
    parts = [torch.autograd.grad(x.square().sum(), pool.prompts, retain_graph=True)[0] for x in (scores, whole)]
    torch.testing.assert_close(*parts)


def test_keys_start_as_queries_the_same_in_every_process():
    plans = [
        METHODS["lpt"].build(settings_of("lpt", SMALL), tiny_bundle(), BuildContext(RunSettings(seed=3), r, 2))
        for r in (0, 1)
    ]
    stages = [plan.stages[1] for plan in plans]
    stages[1].load_state_dict(stages[0].state_dict())
    before = stages[0].network.pool.keys.detach().clone()
    for stage in stages:
        stage.train()
        stage.start()
    keys = stages[0].network.pool.keys
    assert torch.equal(keys, stages[1].network.pool.keys)
    assert keys.requires_grad
    images, _ = next(stages[0].first.epoch(0, 0))
    assert len(images) == 5
    torch.testing.assert_close(keys, stages[0].network.transformer(images))
    assert not torch.isclose(keys, before).all(1).any()


def test_the_loss_is_the_sum_of_its_parts():
    stage = build(epochs=4, eta=0.6).stages[1].train()
    assert (stage.balanced.gamma_pos, stage.balanced.gamma_neg) == (0.0, 4.0)
    assert (stage.instance.gamma_pos, stage.instance.gamma_neg) == (0.5, 8.0)
    images, labels = batch = next(stage.batches.epoch(0, 0))
    for epoch, share in ((0, 0.6), (3, 0.15)):
        stage.epoch = epoch
        stage.train()
        torch.manual_seed(5)
        value, logged = stage(batch)
        scores, _, cosines = stage.network.grouped(images)
        torch.manual_seed(5)
        balanced = stage.balanced(scores[0::2], labels[0::2])
        instance = stage.instance(scores[1::2], labels[1::2])
        torch.testing.assert_close(value, balanced + share * instance + 1 - cosines.mean())
        torch.testing.assert_close(logged, {"balanced": balanced, "instance": instance, "matching": 1 - cosines.mean()})


def test_features_of_a_masked_encoder_are_standardised():
    """The first phase's statistics choose the keys in the second, which has statistics of its own for what it adds."""
    first, second = build(init="a-livt-run").stages
    network = first.network
    first.train()
    first(next(first.batches.epoch(0, 0)))
    learned = {name: value.clone() for name, value in network.norm.state_dict().items()}
    assert learned["num_batches_tracked"] == 1
    assert network.group_norm.num_batches_tracked == 0
    second.train()
    second.start()
    assert all(torch.equal(value, learned[name]) for name, value in network.group_norm.state_dict().items())
    second.train()
    second(next(second.batches.epoch(0, 0)))
    assert all(torch.equal(value, learned[name]) for name, value in network.norm.state_dict().items())
    assert network.group_norm.num_batches_tracked == 2
    assert not torch.equal(network.group_norm.running_mean, learned["running_mean"])


def test_half_of_a_batch_is_class_balanced():
    plan = build()
    assert plan.stages[1].batches.batches.start_draw == 40
    labels = [y for e in range(20) for _, y in plan.stages[1].batches.epoch(e, 0)]
    balanced, instance = (torch.bincount(torch.cat([y[i::2] for y in labels]), minlength=3).float() for i in (0, 1))
    assert (balanced / balanced.sum() - 1 / 3).abs().max() < 0.1
    torch.testing.assert_close(instance / instance.sum(), torch.tensor([0.6, 0.3, 0.1]))


@pytest.mark.usefixtures("_command_line")
def test_nothing_but_prompts_keys_and_classifier_moves(tmp_path):
    plan = build(epochs=1)
    plan.stages[0].initial = None
    network = plan.stages[0].network
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    train(
        plan,
        run=RunSettings(),
        settings={},
        facts={"class_names": ["a", "b", "c"]},
        class_counts=(12, 6, 2),
        groups={"many": [0], "medium": [1], "few": [2]},
        out=tmp_path,
        accelerator=make_accelerator("fp32"),
    )
    moved = {name for name, p in network.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"transformer.prompts", "pool.keys", "pool.prompts", "head.weight"}


def test_each_phase_trains_its_own():
    first, second = build().stages
    network = first.network
    assert {id(p) for p in first.trained()} == {id(network.transformer.prompts), id(network.head.weight)}
    assert {id(p) for p in second.trained()} == {id(p) for p in (*network.pool.parameters(), network.head.weight)}
    for stage in (first, second):
        for p in stage.parameters():
            p.requires_grad_(False)
        for p in stage.trained():
            p.requires_grad_(True)
        stage.train()
        assert not network.transformer.backbone.blocks[0].training  # dropout rests in what is frozen
        stage(next(stage.batches.epoch(0, 0)))[0].backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in stage.trained())
        assert all(p.grad is None for p in network.transformer.backbone.parameters())
        stage.zero_grad()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folders of a LiVT run, and of an LPT run on its encoder."""
    folder = tmp_path_factory.mktemp("lpt")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    livt, lpt = str(folder / "livt"), str(folder / "lpt")
    assert main(["train", "--config", "livt/digits", "--pretrain-epochs", "2", "--epochs", "1", "--warmup-epochs", "0",
                 "--out", livt]) == 0  # fmt: skip
    command = ["train", "--config", "lpt/digits", "--init", os.path.relpath(livt), "--batch-size", "64"]
    command += ["--epochs", "2", "--group-epochs", "1"]
    assert main([*command, "--out", lpt]) == 0
    torch.set_num_threads(threads)
    return Path(livt), Path(lpt), command


@pytest.mark.slow
@pytest.mark.usefixtures("_command_line")
def test_a_finished_run_names_its_files(runs, capsys):
    _, lpt, command = runs
    assert main([*command, "--out", str(lpt)]) == 0
    assert "checkpoint.pt, weights.safetensors, TensorBoard events" in capsys.readouterr().out
    assert (lpt / "weights.safetensors").stat().st_mode == (lpt / "checkpoint.pt").stat().st_mode


def test_a_finished_run_has_no_backbone(runs):
    livt, lpt, _ = runs
    saved = load_checkpoint(lpt)
    assert not saved["whole"]
    kept = {"transformer.prompts", "pool.keys", "pool.prompts", "head.weight"}
    for norm in ("norm", "group_norm"):
        kept |= {f"{norm}.{statistic}" for statistic in ("running_mean", "running_var", "num_batches_tracked")}
    assert {name.partition("network.")[2] for name in saved["model"]} == kept
    weights = load_file(lpt / "weights.safetensors")
    assert weights.keys() == kept
    plan = METHODS["lpt"].build(settings_of("lpt", {"init": str(livt)}), load("digits", imbalance=50), BuildContext())
    plan.adapted.recall()
    network = plan.adapted.network
    assert not network.load_state_dict(weights, strict=False).unexpected_keys
    encoder = read_run(livt, encoder=True).backbone
    for name, value in network.transformer.backbone.named_parameters():
        if name in encoder:
            assert torch.equal(value, encoder[name])
    metrics = json.loads((lpt / "metrics.json").read_text())
    hits, count = 0, 0
    with torch.no_grad():
        for images, labels in plan.test:
            hits += int((network.eval().grouped(images)[0].argmax(1) == labels).sum())
            count += len(labels)
    assert 100 * hits / count == pytest.approx(metrics["top1"])


@pytest.mark.usefixtures("_command_line")
def test_eval_takes_the_backbone_from_where_it_was(runs, tmp_path, monkeypatch):
    _, lpt, _ = runs
    monkeypatch.chdir(tmp_path)  # --init was relative to another folder
    assert main(["eval", "--checkpoint", str(lpt), "--out", str(tmp_path / "eval.json")]) == 0
    metrics = json.loads((lpt / "metrics.json").read_text())
    assert json.loads((tmp_path / "eval.json").read_text())["per_class"] == metrics["per_class"]


@pytest.mark.slow
@pytest.mark.usefixtures("_command_line")
def test_killed_inside_and_between_phases_ends_with_the_same_bits(runs, tmp_path):
    """Of 8 + 9 steps: killed inside the first phase, before the second, and inside it."""
    _, lpt, command = runs
    check_killed_runs(lpt, command, (3, 7, 4), ["shared", "group", "group"], tmp_path)


@pytest.mark.usefixtures("_command_line")
def test_report_shows_which_keys_classes_choose(runs, tmp_path, capsys):
    livt, lpt, _ = runs
    out = tmp_path / "prompts.png"
    assert main(["report", "prompts", str(lpt), "--out", str(out)]) == 0
    chosen = int(capsys.readouterr().out.split(" of 20 keys are chosen")[0].split()[-1])
    assert chosen > 10  # random keys that never moved: two
    assert out.read_bytes()[:4] == b"\x89PNG"
    rows = json.loads(out.with_suffix(".json").read_text())
    assert len(rows["class_names"]) == len(rows["shares"]) == 10
    assert all(sum(row) == pytest.approx(1, abs=1e-5) and len(row) == 20 for row in rows["shares"])
    assert main(["report", "prompts", str(livt), "--out", str(out)]) == 2
    assert "checkpoint: expected a finished run of method lpt, got one of livt" in capsys.readouterr().err


def test_a_backbone_without_training_is_refused():
    with pytest.raises(ValueError, match="backbone: expected trained weights"):
        build().stages[0].start()


def test_under_two_percent_of_the_backbone():
    network = PromptedClassifier("vit_base_patch16_224", 365, group_blocks=6)
    backbone = sum(p.numel() for p in network.transformer.backbone.parameters())
    others = sum(p.numel() for p in network.parameters()) - backbone
    assert others < 0.02 * backbone


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_build(path, like_recipe):
    recipe = yaml.safe_load(path.read_text())
    names = {field.name for field in fields(METHODS["lpt"].settings)}
    values = {name: value for name, value in recipe.items() if name in names}
    if recipe.get("pretrained"):
        values |= {"backbone": "vit_tiny_patch16_224", "image_size": 32, "pretrained": False}
    plan = METHODS["lpt"].build(settings_of("lpt", {**values, "batch_size": 2}), like_recipe(recipe), BuildContext())
    for stage in plan.stages:
        assert stage(next(stage.batches.epoch(0, 0)))[0].isfinite()
        stage.optimisation.make_scheduler(stage.optimizer(), 10)
    paper = {"prompt_length": 10, "group_length": 10, "pool_size": 20, "matches": 2}
    assert {name: recipe[name] for name in paper} == paper


def test_recipes_are_all_there():
    assert [path.stem for path in RECIPES] == ["cifar10-lt", "digits", "imagenet-lt", "inat18", "places-lt"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("prompt_length", 0, "prompt_length: expected at least 1, got 0"),
        ("group_length", 0, "group_length: expected at least 1, got 0"),
        ("pool_size", 0, "pool_size: expected at least 1, got 0"),
        ("matches", 6, "matches: expected 1 to 5, the pool's size, got 6"),
        ("batch_size", 5, "batch_size: expected an even number"),
        ("group_epochs", 0, "group_epochs: expected at least 1, or auto, got 0"),
        ("group_blocks", 0, "group_blocks: expected at least 1, or auto, got 0"),
        ("group_blocks", 5, "group_blocks: expected 1 to 4, the number of blocks, got 5"),
        ("group_lr", 0.0, "group_lr: expected a positive number, or auto, got 0.0"),
        ("eta", -1.0, "eta: expected at least 0, got -1.0"),
        ("backbone", "digits_convnet", "backbone: expected a timm VisionTransformer"),
    ],
)
def test_bad_settings_are_named(name, value, message):
    with pytest.raises(ValueError, match=message):
        build(**{name: value})
