from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from ltfast.errors import InputError
from ltfast.losses import LogitAdjustedLoss
from ltfast.methods import settings_of
from ltfast.methods.classifier_loss import make_loss
from ltfast.methods.livt import make_soft_target_loss
from ltfast.methods.settings import loss_weight
from ltfast.runs.prior import prior_shift

COUNTS = [60, 30, 10]
TRAIN = torch.tensor([0.6, 0.3, 0.1])


def run(method, **values):
    settings = settings_of(method, values)
    return SimpleNamespace(
        distribution=settings.score_distribution(COUNTS),
        settings={"method": method, **values},
        facts={"class_counts": COUNTS, "class_names": ["a", "b", "c"]},
    )


def shifted(run, prior, posterior):
    """What the correction makes of the probabilities `posterior`."""
    return (posterior.log() + prior_shift(run, prior)).softmax(0)


BALANCED = [
    ("ce", {"loss": "logit_adjusted"}),
    ("ce", {"loss": "balanced_bce"}),
    ("ce", {"loss": "cross_entropy", "sampler": "class_balanced"}),
    ("proco", {}),
    ("dscl", {}),
    ("livt", {}),
]
AS_TRAINED = [
    ("ce", {"loss": "cross_entropy"}),
    ("livt", {"loss": "cross_entropy"}),
    ("livt", {"loss": "bce"}),
    ("livt", {"tau": 0.0}),
]
LIKELIHOOD = torch.tensor([0.2, 0.5, 0.9])  # of an image under each class


def posterior(prior):
    return LIKELIHOOD * prior / (LIKELIHOOD * prior).sum()


@pytest.mark.parametrize(("method", "values"), BALANCED)
def test_scores_of_balanced_losses_follow_the_uniform_distribution(method, values):
    one = run(method, **values)
    torch.testing.assert_close(shifted(one, "uniform", posterior(torch.ones(3))), posterior(torch.ones(3)))
    torch.testing.assert_close(shifted(one, "train", posterior(torch.ones(3))), posterior(TRAIN))


@pytest.mark.parametrize(("method", "values"), AS_TRAINED)
def test_scores_of_cross_entropy_follow_the_training_set(method, values, tmp_path):
    one = run(method, **values)
    torch.testing.assert_close(shifted(one, "train", posterior(TRAIN)), posterior(TRAIN))
    torch.testing.assert_close(shifted(one, "uniform", posterior(TRAIN)), posterior(torch.ones(3)))
    file = tmp_path / "prior.csv"
    file.write_text("class;weight\nc;5\na;1\nb;0\n")
    torch.testing.assert_close(shifted(one, str(file), posterior(TRAIN)), posterior(torch.tensor([1.0, 0.0, 5.0])))


def loss_of(method, values):
    """The loss of the classifier, and the class distribution of the images that it gets."""
    settings = settings_of(method, values)
    if method == "ce":
        return make_loss(settings, COUNTS), torch.tensor(COUNTS)
    if method == "livt":
        return make_soft_target_loss(settings, COUNTS), torch.tensor(COUNTS)
    weight = loss_weight(settings, COUNTS)
    if method == "proco":
        return LogitAdjustedLoss(COUNTS, weight=weight), torch.tensor(COUNTS)
    return torch.nn.CrossEntropyLoss(weight), torch.full((3,), 30)  # dscl draws the classes equally often


@pytest.mark.parametrize("weights", [None, "balanced", "effective", (3.0, 1.0, 0.2)])
@pytest.mark.parametrize(("method", "loss"), [("ce", "cross_entropy"), ("ce", "logit_adjusted"), ("proco", None),
                                              ("dscl", None), ("livt", "cross_entropy")])  # fmt: skip
def test_class_weights_weight_the_distribution(method, loss, weights):
    """The scores that are optimal for images without any information are corrected to the prior itself."""
    values = {"class_weights": weights, **({"loss": loss} if loss else {})}
    criterion, counts = loss_of(method, values)
    labels = torch.repeat_interleave(torch.arange(3), counts)
    scores = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.LBFGS([scores], lr=1, max_iter=100, tolerance_grad=1e-8, line_search_fn="strong_wolfe")
    target = F.one_hot(labels, 3).float() if method == "livt" else labels

    def step():
        optimizer.zero_grad()
        value = criterion(scores.expand(len(labels), 3), target)
        value.backward()
        return value

    optimizer.step(step)
    one = run(method, **values)
    for prior, expected in (("train", TRAIN), ("uniform", torch.full((3,), 1 / 3))):
        corrected = (scores.detach() + prior_shift(one, prior)).softmax(0)
        torch.testing.assert_close(corrected, expected, atol=1e-3, rtol=0)


def test_samplers_and_strengths_between_the_two():
    one = run("ce", sampler="square_root")
    torch.testing.assert_close(shifted(one, "uniform", posterior(TRAIN.sqrt())), posterior(torch.ones(3)))
    one = run("ce", sampler="class_balanced", loss="logit_adjusted")
    torch.testing.assert_close(shifted(one, "uniform", posterior(1 / TRAIN)), posterior(torch.ones(3)))
    one = run("livt", tau=0.5)
    torch.testing.assert_close(shifted(one, "train", posterior(TRAIN.sqrt())), posterior(TRAIN))


@pytest.mark.parametrize(
    ("method", "values"), [("ce", {"loss": "agcl"}), ("ce", {"loss": "ldam"}), ("do", {}), ("lpt", {})]
)
def test_scores_that_follow_no_known_distribution(method, values):
    with pytest.raises(InputError, match=f"prior: expected none for a run of method {method}.*no.* a known class dist"):
        prior_shift(run(method, **values), "uniform")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,1\nb,1\nc,1\n", r":1: expected the columns class and weight, got a, 1"),
        ("class,weight\na,1\nb,1\n", ": expected a row for each class of the run, got none for c"),
        ("class,weight\na,1\na,1\n", r":3: expected each class of the run once \(a, b, c\), got 'a'"),
        ("class,weight\nd,1\n", r":2: expected each class of the run once \(a, b, c\), got 'd'"),
        ("class,weight\na,-1\n", ":2: expected a weight of at least 0, got '-1'"),
        ("class,weight\na,many\n", ":2: expected a weight of at least 0, got 'many'"),
        ("class,weight\na\n", ":2: expected a weight of at least 0, got None"),
        ("class,weight\na,0\nb,0\nc,0\n", ": expected weights with a positive sum, got 0.0"),
    ],
)
def test_files_that_are_no_distribution(text, message, tmp_path):
    file = tmp_path / "prior.csv"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        prior_shift(run("ce"), str(file))
