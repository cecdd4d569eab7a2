"""What the methods print before they start."""

import pytest

from ltfast.engine import RunSettings
from ltfast.engine.plan_text import plan_lines
from ltfast.methods import METHODS, BuildContext, settings_of
from methods.conftest import tiny_bundle

VIT = {"backbone": "vit_digits"}


def lines(method, run=None, processes=1, **values):
    values = {"batch_size": 4, "backbone": "digits_convnet", "epochs": 3, **values}
    run = run or RunSettings()
    plan = METHODS[method].build(settings_of(method, values), tiny_bundle((12, 6, 2)), BuildContext(run))
    return plan_lines(plan, run, processes=processes)


def test_one_stage_is_one_line():
    expected = (
        "plan: train: 3 epochs (--epochs), 15 steps of 4 images; trains 65,379 parameters (all); learning rate 0.1"
    )
    assert lines("ce") == [expected]
    (line,) = lines("ce", RunSettings(accumulate=2), processes=3, epochs=1)
    assert line.startswith("plan: train: 1 epoch (--epochs), 3 steps of 24 images; ")


@pytest.mark.parametrize(
    ("prune", "first", "second"),
    [("auto", "a searched share (10 to 90 %)", "a searched share (10 to 90 %)"), ((0.5, 0.75), "50 %", "75 %")],
)
def test_do_names_its_prunings_and_the_sum(prune, first, second):
    rest = "of its weights, and trains the others; learning rate 0.01"
    shown = lines("do", group_minima=(10, 5), later_epochs=2, prune_epochs=1, prune=prune, lr=0.1)
    later = "2 epochs (--later-epochs), 10 steps of 4 images; trains the weights that the stages before have pruned"
    assert shown == [
        "plan: 5 stages, with 9 epochs and 45 steps in all",
        "  many:          3 epochs (--epochs), 15 steps of 4 images; trains 65,379 parameters (all); learning rate 0.1",
        f"  many_pruned:   1 epoch (--prune-epochs), 5 steps of 4 images; prunes {first} {rest}",
        f"  medium:        {later}; learning rate 0.01",
        f"  medium_pruned: 1 epoch (--prune-epochs), 5 steps of 4 images; prunes {second} {rest}",
        f"  few:           {later}; learning rate 0.01",
    ]


@pytest.mark.parametrize(
    ("method", "values", "expected"),
    [
        (
            "dscl",
            {"queue_size": 8, "classifier_epochs": 2},
            [("contrast", "3 epochs (--epochs)", "(encoder, projection)"),
             ("classifier", "2 epochs (--classifier-epochs)", "trains 195 parameters (head)")],
        ),
        (
            "livt",
            {"pretrain_epochs": 2, "pretrain_batch_size": 5, "warmup_epochs": 1, **VIT},
            [("pretrain", "2 epochs (--pretrain-epochs), 8 steps of 5 images", "(all)"),
             ("finetune", "3 epochs (--epochs), 15 steps of 4 images", "(all)")],
        ),
        (
            "lpt",
            {"group_epochs": 1, **VIT},
            [("shared", "3 epochs (--epochs)", "(prompts, head)"),
             ("group", "1 epoch (--group-epochs)", "(pool, head)")],
        ),
    ],
)  # fmt: skip
def test_stages_name_their_option_and_what_they_train(method, values, expected):
    total, *stages = lines(method, **values)
    assert total.startswith("plan: 2 stages, with ")
    for line, (name, epochs, trained) in zip(stages, expected, strict=True):
        assert line.startswith(f"  {name}:")
        assert epochs in line
        assert trained in line


@pytest.mark.parametrize("method", METHODS)
def test_every_option_that_is_named_is_one(method):
    vit = method in ("lift", "livt", "lpt")
    extras = {"dscl": {"queue_size": 8}, "livt": {"pretrain_batch_size": 4}, "do": {"group_minima": (10, 5)}}
    extra = extras.get(method, {})
    plan = METHODS[method].build(
        settings_of(method, {"batch_size": 4, "backbone": "vit_digits" if vit else "digits_convnet", **extra}),
        tiny_bundle((12, 6, 2)),
        BuildContext(),
    )
    for stage in plan.stages:
        assert stage.epochs_setting in METHODS[method].settings.__dataclass_fields__
