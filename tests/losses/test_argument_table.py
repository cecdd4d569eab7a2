"""The table of docs/losses.md: which loss takes which argument of ``nn.CrossEntropyLoss``. Each cell is a test.

A cell that says yes is compared with ``F.cross_entropy`` of the loss's scores, or with the loss's plain formula, in
float64: values and gradients, for each reduction. A cell that says no has a reason, and the call raises an error.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils.data import Subset, TensorDataset

from ltfast import losses
from ltfast.losses import (
    AGCLLoss,
    BalancedBCELoss,
    BalancedSoftmaxLoss,
    ClassBalancedLoss,
    CompensationLoss,
    FocalLoss,
    GCLLoss,
    LADELoss,
    LDAMLoss,
    LinearAGCLLoss,
    LinearBalancedBCELoss,
    LinearCompensationLoss,
    LinearCrossEntropyLoss,
    LinearLogitAdjustedLoss,
    LogitAdjustedLoss,
    ProCoLoss,
    SeesawLoss,
    VSLoss,
)

COUNTS = [400, 90, 30, 12, 5]
CLASSES, WIDTH, ROWS = len(COUNTS), 6, 8
N = torch.tensor(COUNTS, dtype=torch.float64)
PRIOR = (N / N.sum()).log()
LAYER = torch.randn(CLASSES, WIDTH, dtype=torch.float64), torch.randn(CLASSES, dtype=torch.float64)
REDUCTIONS = ("mean", "sum", "none")


def along(vector, x):
    """A vector of the classes, shaped so that it is broadcast over (B, C, d1, ...)."""
    return vector.view(-1, *[1] * (x.dim() - 2))


def dense(target, x):
    """Labels as one-hot rows, where ignored ones are 0; probabilities as they are."""
    if target.is_floating_point():
        return target
    classes = along(torch.arange(x.shape[1]), x)
    return (classes == target[:, None]).to(x.dtype)


def cross_entropy_of(scores):
    def plain(x, target, **options):
        return F.cross_entropy(scores(x, dense(target, x)), target, **options)

    return plain


def balanced_bce(x, target, *, weight=None, label_smoothing=0.0, ignore_index=-100, reduction="mean"):
    """LiVT's formula: a binary cross-entropy for each class, whose weight is that of nn.BCEWithLogitsLoss."""
    t = (1 - label_smoothing) * dense(target, x) + label_smoothing / CLASSES
    z = x + along((N / (N.sum() - N)).log(), x)
    weight = torch.ones(CLASSES, dtype=x.dtype) if weight is None else weight
    rows = (along(weight, x) * F.binary_cross_entropy_with_logits(z, t, reduction="none")).sum(1)
    counted = torch.ones_like(rows) if target.is_floating_point() else (target != ignore_index).double()
    rows = rows * counted
    mean = rows.sum() / counted.sum().clamp(min=1) if counted.any() else rows.sum() + torch.nan
    return {"none": rows, "sum": rows.sum(), "mean": mean}[reduction]


def effective_number(x, target, **options):
    weight = 1 / (1 - 0.9999**N)
    return F.cross_entropy(x, target, weight=weight / weight.mean(), **options)


def of_layer(make):
    """A loss of a linear layer as a function of its features."""

    def made(*arguments, **options):
        loss = make(*arguments, **options)
        bias = None if isinstance(loss, LinearAGCLLoss) else LAYER[1]
        return lambda features, target: loss(features, LAYER[0], bias, target)

    return made


def after_layer(plain):
    return lambda features, target, **options: plain(F.linear(features, *LAYER), target, **options)


def after_cosines(plain):
    def of_features(features, target, **options):
        return plain(F.linear(F.normalize(features), F.normalize(LAYER[0])), target, **options)

    return of_features


STATISTICS = ProCoLoss(CLASSES, WIDTH)
STATISTICS.update(F.normalize(torch.randn(40, WIDTH)), torch.arange(40) % CLASSES)


def proco(counts, **options):
    loss = ProCoLoss(CLASSES, WIDTH, class_counts=counts, **options)
    loss.load_state_dict(STATISTICS.state_dict())
    return loss


def proco_plain(features, target, **options):
    return F.cross_entropy(STATISTICS.logits(features) + PRIOR, target, **options)


@dataclass(frozen=True)
class Row:
    """A loss of the table.

    Attributes:
        make: (class counts, **options) -> the loss, without noise and focusing, as a function of inputs and targets.
        plain: (inputs, target, **options) -> what it has to give.
        no: the columns that it does not take: the reason, and the error that such a call raises.
        on_features: whether the inputs are features (B, D).
    """

    make: Callable[..., Callable[..., torch.Tensor]]
    plain: Callable[..., torch.Tensor]
    no: dict[str, tuple[str, str]] = field(default_factory=dict)
    on_features: bool = False


ONE_LABEL = {
    "probabilities": (
        "The terms of the loss are defined for one label. Add the losses of both labels of mixed images, each times "
        "its share.",
        r"target has dtype torch\.float64.*expected integer labels",
    )
}
ROWS_ONLY = {
    "(B, C, d1, ...)": (
        "The inputs are rows of features, (B, D). Flatten them first.",
        r"features has shape \(8, 6, 3\): expected \(batch, (6|width)\)",
    )
}
log_alpha = (torch.tensor(COUNTS[::-1], dtype=torch.float64) / N.sum()).log()
margins = 0.5 * (N.min() / N) ** 0.25
agcl = cross_entropy_of(lambda x, t: 20 * (x - 0.1 * t))
compensation = cross_entropy_of(lambda x, t: x - along(log_alpha, x))
adjusted = cross_entropy_of(lambda x, t: x + along(PRIOR, x))
unchanged = cross_entropy_of(lambda x, t: x)

TABLE = {
    "AGCLLoss": Row(
        lambda counts, label_smoothing=0.0, **o: AGCLLoss(
            counts, gamma_neg=0.0, label_smoothing=label_smoothing, **o
        ).eval(),
        agcl,
        ONE_LABEL,
    ),
    "BalancedBCELoss": Row(BalancedBCELoss, balanced_bce),
    "BalancedSoftmaxLoss": Row(BalancedSoftmaxLoss, adjusted),
    "ClassBalancedLoss": Row(
        ClassBalancedLoss,
        effective_number,
        {"weight": ("The weights follow from the class counts.", "unexpected keyword argument 'weight'")},
    ),
    "CompensationLoss": Row(lambda counts, **o: CompensationLoss(counts, 3, **o), compensation),
    "FocalLoss": Row(lambda counts, **o: FocalLoss(counts, gamma=0.0, **o), unchanged),
    "GCLLoss": Row(lambda counts, **o: GCLLoss(counts, **o).eval(), cross_entropy_of(lambda x, t: 30 * x), ONE_LABEL),
    "LADELoss": Row(lambda counts, **o: LADELoss(counts, estim_loss_weight=0.0, **o), adjusted),
    "LDAMLoss": Row(LDAMLoss, cross_entropy_of(lambda x, t: 30 * (x - along(margins, x) * t))),
    "LogitAdjustedLoss": Row(LogitAdjustedLoss, adjusted),
    "SeesawLoss": Row(lambda counts, **o: SeesawLoss(counts, q=0.0, **o).eval(), unchanged, ONE_LABEL),
    "VSLoss": Row(VSLoss, cross_entropy_of(lambda x, t: x * along((N / N.max()) ** 0.3, x) + along(PRIOR, x))),
    "LinearCrossEntropyLoss": Row(
        of_layer(lambda counts=None, **o: LinearCrossEntropyLoss(**o)),
        after_layer(F.cross_entropy),
        ROWS_ONLY | {"class_counts": ("It is the plain cross-entropy.", "unexpected keyword argument 'class_counts'")},
        on_features=True,
    ),
    "LinearLogitAdjustedLoss": Row(of_layer(LinearLogitAdjustedLoss), after_layer(adjusted), ROWS_ONLY, True),
    "LinearCompensationLoss": Row(
        of_layer(lambda counts, **o: LinearCompensationLoss(counts, 3, **o)), after_layer(compensation), ROWS_ONLY, True
    ),
    "LinearBalancedBCELoss": Row(of_layer(LinearBalancedBCELoss), after_layer(balanced_bce), ROWS_ONLY, True),
    "LinearAGCLLoss": Row(
        of_layer(
            lambda counts, label_smoothing=0.0, **o: LinearAGCLLoss(
                counts, gamma_neg=0.0, label_smoothing=label_smoothing, **o
            ).eval()
        ),
        after_cosines(agcl),
        ONE_LABEL | ROWS_ONLY,
        True,
    ),
    "ProCoLoss": Row(proco, proco_plain, ROWS_ONLY, True),
}
OVER_A_QUEUE = {"DSCLLoss", "PBSDLoss", "SupConQueueLoss"}  # (B, D) queries and keys, not logits


def inputs_of(row, *sizes, rows=ROWS):
    if row.on_features:
        return F.normalize(torch.randn(rows, WIDTH, *sizes, dtype=torch.float64))
    return torch.rand(rows, CLASSES, *sizes, dtype=torch.float64) * 2 - 1


def labels_of(*sizes, rows=ROWS):
    return torch.randint(CLASSES, (rows, *sizes))


def soft_of(*sizes, rows=ROWS):
    return torch.randn(rows, CLASSES, *sizes, dtype=torch.float64).softmax(1)


def value_and_gradient(function, inputs, incoming):
    inputs = inputs.detach().requires_grad_()
    value = function(inputs)
    (gradient,) = torch.autograd.grad(value, inputs, incoming.expand_as(value) if value.dim() else incoming.sum())
    return value.detach(), gradient


def compare(row, inputs, target, **options):
    """The loss and the plain formula, for every reduction."""
    for reduction in REDUCTIONS:
        chosen = options | {"reduction": reduction}
        incoming = torch.rand(
            target.shape[:1] + target.shape[2:] if target.is_floating_point() else target.shape, dtype=torch.float64
        )
        if reduction != "none":
            incoming = torch.tensor(1.7, dtype=torch.float64)
        loss = row.make(COUNTS, **chosen)
        ours = value_and_gradient(lambda x, loss=loss: loss(x, target), inputs, incoming)
        theirs = value_and_gradient(lambda x, chosen=chosen: row.plain(x, target, **chosen), inputs, incoming)
        for got, expected in zip(ours, theirs, strict=True):
            torch.testing.assert_close(got, expected, rtol=2e-6, atol=2e-6, equal_nan=True)


def weight_vector():
    return torch.rand(CLASSES, dtype=torch.float64) + 0.2


def check_labels(row):
    compare(row, inputs_of(row), labels_of())


def check_probabilities(row):
    compare(row, inputs_of(row), soft_of())
    inputs, labels = inputs_of(row), labels_of()
    loss = row.make(COUNTS, reduction="none")
    torch.testing.assert_close(loss(inputs, F.one_hot(labels, CLASSES).double()), loss(inputs, labels))


def check_dense(row):
    compare(row, inputs_of(row, 3), labels_of(3))
    compare(row, inputs_of(row, 2, 3), labels_of(2, 3))
    if "probabilities" not in row.no:
        compare(row, inputs_of(row, 3), soft_of(3))


def check_empty(row):
    compare(row, inputs_of(row, rows=0), labels_of(rows=0))
    if "probabilities" not in row.no:
        compare(row, inputs_of(row, rows=0), soft_of(rows=0))
    if "(B, C, d1, ...)" not in row.no:
        compare(row, inputs_of(row, 3, rows=0), labels_of(3, rows=0))
        compare(row, inputs_of(row, 0), labels_of(0))


def check_weight(row):
    compare(row, inputs_of(row), labels_of(), weight=weight_vector())
    compare(row, inputs_of(row), labels_of(), weight=weight_vector(), label_smoothing=0.2)
    if "probabilities" not in row.no:
        compare(row, inputs_of(row), soft_of(), weight=weight_vector())


def check_smoothing(row):
    compare(row, inputs_of(row), labels_of(), label_smoothing=0.2)
    if "probabilities" not in row.no:
        compare(row, inputs_of(row), soft_of(), label_smoothing=0.2)


def check_ignore_index(row):
    labels = labels_of()
    labels[::3] = 2
    compare(row, inputs_of(row), labels, ignore_index=2)
    labels[::3] = -100
    compare(row, inputs_of(row), labels)
    compare(row, inputs_of(row), torch.full_like(labels, -100))
    if "weight" not in row.no:
        compare(row, inputs_of(row), labels, weight=weight_vector(), label_smoothing=0.1)


def check_reduction(row):
    inputs, labels = inputs_of(row), labels_of()
    for reduction, shape in (("mean", ()), ("sum", ()), ("none", (ROWS,))):
        assert row.make(COUNTS, reduction=reduction)(inputs, labels).shape == shape
    with pytest.raises(ValueError, match="reduction is 'median'"):
        row.make(COUNTS, reduction="median")(inputs, labels)


def forms_of_counts():
    labels = torch.arange(CLASSES).repeat_interleave(torch.tensor(COUNTS))
    images = TensorDataset(torch.zeros(len(labels)))
    images.targets = labels.tolist()
    yield from (tuple(COUNTS), np.array(COUNTS), torch.tensor(COUNTS), dict(enumerate(COUNTS)))
    yield from (Counter(labels.tolist()), images, Subset(images, range(len(labels))))


def check_class_counts(row):
    inputs, labels = inputs_of(row), labels_of()
    expected = row.make(COUNTS)(inputs, labels)
    for counts in forms_of_counts():
        assert torch.equal(row.make(counts)(inputs, labels), expected)


COLUMNS = {
    "labels": check_labels,
    "probabilities": check_probabilities,
    "(B, C, d1, ...)": check_dense,
    "empty batch": check_empty,
    "weight": check_weight,
    "label_smoothing": check_smoothing,
    "ignore_index": check_ignore_index,
    "reduction": check_reduction,
    "class_counts": check_class_counts,
}


def refuse(name, row, column):
    """A call with what the column says."""
    if column == "class_counts":
        getattr(losses, name)(class_counts=COUNTS)
    options: dict[str, Any] = {"weight": weight_vector()} if column == "weight" else {}
    sizes = (3,) if column == "(B, C, d1, ...)" else ()
    target = soft_of() if column == "probabilities" else labels_of(*sizes)
    row.make(COUNTS, **options)(inputs_of(row, *sizes), target)


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("name", TABLE)
def test_cell(name, column):
    row = TABLE[name]
    if column not in row.no:
        COLUMNS[column](row)
        return
    reason, message = row.no[column]
    assert reason
    with pytest.raises((TypeError, ValueError), match=message):
        refuse(name, row, column)


def test_the_table_has_every_loss():
    classes = {name for name in losses.__all__ if name.endswith("Loss")}
    assert classes - OVER_A_QUEUE == set(TABLE)
    assert {column for row in TABLE.values() for column in row.no} <= set(COLUMNS)


def markdown():
    """The table as docs/losses.md has it, and the reasons, which are numbered."""
    reasons: dict[str, int] = {}
    lines = [f"| loss | {' | '.join(COLUMNS)} |", "| --- |" + " --- |" * len(COLUMNS)]
    for name, row in TABLE.items():
        cells = [
            "yes" if column not in row.no else f"no ({reasons.setdefault(row.no[column][0], len(reasons) + 1)})"
            for column in COLUMNS
        ]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"{number}. {reason}" for reason, number in reasons.items())]) + "\n"


def test_the_documentation_has_the_table():
    text = (Path(__file__).parents[2] / "docs" / "losses.md").read_text()
    assert markdown() in text, f"expected in docs/losses.md:\n\n{markdown()}"


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_reductions_agree(data):
    """The sum is that of the losses of the labels, and the mean is their mean, weighted by the labels' weights."""
    name = data.draw(st.sampled_from(sorted(TABLE)))
    row = TABLE[name]
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    sizes = () if "(B, C, d1, ...)" in row.no else tuple(data.draw(st.lists(st.integers(0, 3), max_size=3)))
    rows = data.draw(st.integers(0, 5))
    inputs, target = inputs_of(row, *sizes, rows=rows), labels_of(*sizes, rows=rows)
    soft = "probabilities" not in row.no and data.draw(st.booleans())
    ignore_index = data.draw(st.integers(-2, CLASSES))
    options = {"ignore_index": ignore_index, "label_smoothing": data.draw(st.sampled_from((0.0, 0.3)))}
    weight = weight_vector() if "weight" not in row.no and data.draw(st.booleans()) else None
    if weight is not None:
        options["weight"] = weight
    if name == "ClassBalancedLoss":
        weight = 1 / (1 - 0.9999**N)
    if soft:
        target, kept = soft_of(*sizes, rows=rows), torch.ones(rows, *sizes, dtype=torch.float64)
    else:
        target[torch.rand(target.shape) < 0.2] = ignore_index
        kept = (target != ignore_index).double()
    none, total, mean = (row.make(COUNTS, reduction=r, **options)(inputs, target) for r in ("none", "sum", "mean"))
    assert none.shape == (rows, *sizes)
    assert torch.all(none[kept == 0] == 0)
    if weight is not None and not soft and "BCE" not in name:
        kept = kept * weight[target.clamp(0, CLASSES - 1)]
    torch.testing.assert_close(total, none.sum(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(mean, none.sum() / kept.sum(), rtol=1e-6, atol=1e-6, equal_nan=True)
    if sizes:
        flat = inputs.movedim(1, -1).reshape(-1, CLASSES)
        flat_target = target.movedim(1, -1).reshape(-1, CLASSES) if soft else target.flatten()
        again = row.make(COUNTS, reduction="none", **options)(flat, flat_target)
        torch.testing.assert_close(none.flatten(), again)


def several_labels(rows=ROWS):
    return (torch.rand(rows, CLASSES) < 0.4).double()


@pytest.mark.parametrize("num_samples", [401, 1000.0, np.int64(10_000)])
def test_balanced_bce_of_several_labels_an_image(num_samples):
    """The prior of a class is the share of the images that have it."""
    logits, target, features = torch.randn(ROWS, CLASSES).double(), several_labels(), inputs_of(TABLE["ProCoLoss"])
    prior = N / float(num_samples)
    bias = prior.log() - (1 - prior).log()
    for tau in (1.0, 0.5):
        options = {"num_samples": num_samples, "tau": tau}
        expected = F.binary_cross_entropy_with_logits(logits + tau * bias, target, reduction="none").sum(1).mean()
        torch.testing.assert_close(BalancedBCELoss(COUNTS, **options)(logits, target), expected, rtol=1e-6, atol=0)
        expected = BalancedBCELoss(COUNTS, **options)(F.linear(features, *LAYER), target)
        of_layer = LinearBalancedBCELoss(COUNTS, **options)(features, *LAYER, target)
        torch.testing.assert_close(of_layer, expected, rtol=1e-6, atol=0)
    whole = BalancedBCELoss(COUNTS, num_samples=sum(COUNTS))
    assert torch.equal(whole.bias, BalancedBCELoss(COUNTS).bias)


def test_one_class_with_a_number_of_images():
    torch.testing.assert_close(BalancedBCELoss([25], num_samples=100).bias, torch.tensor([1 / 3]).log())
    with pytest.raises(ValueError, match="at least 2"):
        BalancedBCELoss([25])


@pytest.mark.parametrize(
    ("num_samples", "error", "message"),
    [
        (400, ValueError, r"num_samples is 400: expected more than 400, class_counts\[0\]"),
        (0, ValueError, "num_samples is 0: expected more than 400"),
        (float("nan"), ValueError, "num_samples is nan: expected a finite number"),
        ("1000", TypeError, "num_samples is '1000': expected a number"),
    ],
)
@pytest.mark.parametrize("loss", [BalancedBCELoss, LinearBalancedBCELoss])
def test_a_wrong_number_of_images(loss, num_samples, error, message):
    with pytest.raises(error, match=message):
        loss(COUNTS, num_samples=num_samples)


WEIGHTED = [name for name, row in TABLE.items() if not {"weight", "class_counts"} & set(row.no)]


@pytest.mark.parametrize("name", WEIGHTED)
def test_wrong_weights(name):
    for weight, error in (
        (torch.ones(CLASSES + 1), ValueError),
        (torch.ones(CLASSES, 1), ValueError),
        (torch.ones(CLASSES).long(), TypeError),
        ([1.0] * CLASSES, TypeError),
    ):
        with pytest.raises(error, match=r"^weight (has|is)"):
            TABLE[name].make(COUNTS, weight=weight)


@pytest.mark.parametrize("make", [AGCLLoss, LinearAGCLLoss, LinearBalancedBCELoss, LinearLogitAdjustedLoss])
def test_classes_in_parallel_have_no_weights(make):
    with pytest.raises(ValueError, match="weight is not None: expected None with class_parallel=True"):
        make(COUNTS, weight=torch.ones(CLASSES), class_parallel=True)


@pytest.mark.parametrize("options", [{"weight": torch.ones(CLASSES)}, {"label_smoothing": 0.1}], ids=str)
def test_proco_in_parallel_has_plain_labels(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name} is set: expected none with class_parallel=True"):
        ProCoLoss(CLASSES, WIDTH, class_parallel=True, **options)


def test_an_empty_batch_leaves_statistics_as_they_are():
    loss = proco(COUNTS)
    loss.update(torch.zeros(0, WIDTH), torch.zeros(0, dtype=torch.int64))
    for name, value in STATISTICS.state_dict().items():
        assert torch.equal(loss.state_dict()[name], value)
    assert loss.logits(torch.zeros(0, WIDTH)).shape == (0, CLASSES)
