"""The losses that stand beside ours in comparisons: each against its authors' code, restated in float64, and in the
corners that this code does not reach."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ltfast.losses import (
    BalancedSoftmaxLoss,
    ClassBalancedLoss,
    FocalLoss,
    GCLLoss,
    LADELoss,
    SeesawLoss,
    VSLoss,
    effective_number_weights,
)
from ltfast.ops.noise import draw_seed, half_normal

COUNTS = [1000, 300, 100, 50, 20, 5]
CLASSES = len(COUNTS)
N = torch.tensor(COUNTS, dtype=torch.float64)


def batch(rows=16, dtype=torch.float64):
    return torch.randn(rows, CLASSES, dtype=torch.float64).mul(3).to(dtype), torch.randint(CLASSES, (rows,))


def agree(ours, oracle, *inputs):
    """Values and gradients in the first input are equal, up to the float32 constants of the modules."""
    values = []
    for loss in (ours, oracle):
        x = inputs[0].clone().requires_grad_()
        value = loss(x, *inputs[1:])
        assert value.dtype == torch.float64
        values.append((value.detach(), torch.autograd.grad(value.sum(), x)[0]))
    (value, gradient), (expected, expected_gradient) = values
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-6 * expected_gradient.abs().max().item())


def published_balanced_softmax(x, y):
    return F.cross_entropy(x + N.log(), y)


def published_focal(x, y, gamma):
    """LDAM-DRW's: a factor from the cross-entropy of each row."""
    of_rows = F.cross_entropy(x, y, reduction="none")
    return ((1 - torch.exp(-of_rows)) ** gamma * of_rows).mean()


def published_weights(beta):
    inverse = (1 - beta) / (1 - beta**N)
    return inverse / inverse.sum() * CLASSES


def published_class_balanced_focal(x, y, beta, gamma):
    """Cui et al.'s: one binary cross-entropy a class, with a modulator, over the number of rows."""
    hot = F.one_hot(y, CLASSES).double()
    modulator = torch.exp(-gamma * hot * x - gamma * torch.log(1 + torch.exp(-x)))
    of_pairs = modulator * F.binary_cross_entropy_with_logits(x, hot, reduction="none")
    return (published_weights(beta)[y][:, None] * of_pairs).sum() / hot.sum()


def published_vs(x, y, gamma, tau, weight):
    delta = (1 / N) ** gamma
    return F.cross_entropy(x / (delta / delta.min()) + tau * (N / N.sum()).log(), y, weight=weight)


def published_lade(x, y, remine_lambda, weight):
    """The sum of PriorCELoss and LADELoss, class by class."""
    prior = N / N.sum()
    estimate = torch.zeros((), dtype=torch.float64)
    for c in range(CLASSES):
        own = x[:, c] * (y == c)
        first = own.sum() / ((y == c).sum() + 1e-8)
        spread = x[:, c] - torch.log(prior[c] + 1e-9) + math.log(1 / CLASSES + 1e-9)
        second = torch.logsumexp(spread, 0) - math.log(len(x))
        estimate = estimate + prior[c] * (first - second - remine_lambda * second**2)
    return F.cross_entropy(x + torch.log(prior + 1e-9), y) - weight * estimate


def published_gcl(cosine, y, noise, scale, margin, noise_mul):
    clouds = N.log().max() - N.log()
    cosine = cosine - noise_mul * noise / clouds.max() * clouds
    return F.cross_entropy(scale * torch.where(F.one_hot(y, CLASSES) > 0, cosine - margin, cosine), y)


def published_seesaw(x, y, seen, p, q, eps):
    """MMDetection's classification term, row by row and class by class."""
    rows = []
    for row, label in zip(x, y.tolist(), strict=True):
        sigma = row.detach().softmax(0)
        total = torch.zeros((), dtype=torch.float64)
        for j in range(CLASSES):
            factor = 1.0
            if j != label:
                ratio = max(seen[j], 1) / max(seen[label], 1)
                factor *= ratio**p if ratio < 1 else 1
                score = sigma[j].item() / max(sigma[label].item(), eps)
                factor *= score**q if score > 1 else 1
            total = total + factor * row[j].exp()
        rows.append(total.log() - row[label])
    return torch.stack(rows).mean()


def test_balanced_softmax():
    agree(BalancedSoftmaxLoss(COUNTS), published_balanced_softmax, *batch())


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_focal(gamma):
    agree(FocalLoss(COUNTS, gamma=gamma), lambda x, y: published_focal(x, y, gamma), *batch())


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_focal_of_weighted_and_soft_targets(gamma, smoothing, reduction):
    x, y = batch()
    weight = torch.rand(CLASSES) + 0.1
    options = {"gamma": gamma, "label_smoothing": smoothing, "weight": weight, "reduction": reduction}
    weight = weight.double()

    def by_hand(x, t, mean):
        t = (t * (1 - smoothing) + smoothing / CLASSES) * weight
        log_p = torch.log_softmax(x, 1)
        rows = -(t * (1 - log_p.exp()) ** gamma * log_p).sum(1)
        return {"mean": rows.sum() / mean, "sum": rows.sum(), "none": rows}[reduction]

    soft = torch.rand(16, CLASSES, dtype=torch.float64).softmax(1)
    agree(FocalLoss(COUNTS, **options), lambda x, t: by_hand(x, t, 16), x, soft)
    agree(FocalLoss(COUNTS, **options), lambda x, y: by_hand(x, F.one_hot(y, CLASSES), weight[y].sum()), x, y)


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.9999])
def test_class_balanced(beta):
    x, y = batch()
    agree(
        ClassBalancedLoss(COUNTS, beta=beta),
        lambda x, y: F.cross_entropy(x, y, weight=published_weights(beta)),
        x, y,
    )  # fmt: skip


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_class_balanced_focal(gamma):
    loss = ClassBalancedLoss(COUNTS, loss="focal", beta=0.99, gamma=gamma, reduction="sum")
    agree(
        lambda x, y: loss(x, y) / len(x),  # the authors divide by the number of rows
        lambda x, y: published_class_balanced_focal(x, y, 0.99, gamma),
        *batch(),
    )


def test_class_balanced_focal_is_linear_in_the_target():
    x, _ = batch()
    soft = torch.rand(16, CLASSES, dtype=torch.float64).softmax(1)
    loss = ClassBalancedLoss(COUNTS, loss="focal", gamma=0.7, reduction="none")
    rows = [loss(x, torch.full((16,), c)) for c in range(CLASSES)]
    expected = sum(soft[:, c] * rows[c] for c in range(CLASSES))
    torch.testing.assert_close(loss(x, soft), expected)
    smoothed = ClassBalancedLoss(COUNTS, loss="focal", gamma=0.7, reduction="none", label_smoothing=0.3)
    torch.testing.assert_close(smoothed(x, soft), 0.7 * expected + 0.3 / CLASSES * sum(rows))
    assert ClassBalancedLoss(COUNTS, loss="focal", gamma=0.7)(x, soft) == loss(x, soft).mean()


def test_effective_number_weights():
    torch.testing.assert_close(effective_number_weights(COUNTS).double(), published_weights(0.9999), rtol=1e-6, atol=0)
    torch.testing.assert_close(effective_number_weights(COUNTS, beta=0), torch.ones(CLASSES))
    inverse = 1 / N
    near_one = effective_number_weights(COUNTS, beta=1 - 1e-9).double()
    torch.testing.assert_close(near_one, inverse / inverse.mean(), rtol=1e-4, atol=0)


@pytest.mark.parametrize(("gamma", "tau"), [(0.3, 1.0), (0.0, 1.5), (0.2, 0.0)])
@pytest.mark.parametrize("weighted", [False, True])
def test_vs(gamma, tau, weighted):
    weight = torch.rand(CLASSES) + 0.1 if weighted else None
    expected_weight = None if weight is None else weight.double()
    loss = VSLoss(COUNTS, gamma=gamma, tau=tau, weight=weight)
    agree(loss, lambda x, y: published_vs(x, y, gamma, tau, expected_weight), *batch())


@pytest.mark.parametrize(("remine_lambda", "weight"), [(0.1, 0.1), (0.5, 2.0), (0.0, 1.0)])
def test_lade(remine_lambda, weight):
    x, y = batch()
    y[y == 3] = 2  # a class without images in this batch
    loss = LADELoss(COUNTS, remine_lambda=remine_lambda, estim_loss_weight=weight)
    agree(loss, lambda x, y: published_lade(x, y, remine_lambda, weight), x, y)
    agree(loss, lambda x, t: published_lade(x, t.argmax(1), remine_lambda, weight), x, F.one_hot(y, CLASSES).double())


@pytest.mark.parametrize("options", [{}, {"scale": 16.0, "margin": 0.2, "noise_mul": 1.0}], ids=str)
def test_gcl(options):
    x, y = batch()
    cosine = x.tanh()
    noise = half_normal(*x.shape, draw_seed(x.device, torch.Generator().manual_seed(3)))
    settings = {"scale": 30.0, "margin": 0.0, "noise_mul": 0.5} | options
    loss = GCLLoss(COUNTS, **options)
    agree(
        lambda x, y: loss(x, y, generator=torch.Generator().manual_seed(3)),
        lambda x, y: published_gcl(x, y, noise, **settings),
        cosine, y,
    )  # fmt: skip
    quiet = settings | {"noise_mul": 0.0}
    agree(loss.eval(), lambda x, y: published_gcl(x, y, noise, **quiet), cosine, y)


@pytest.mark.parametrize("options", [{}, {"p": 1.5, "q": 0.0}, {"p": 0.0, "q": 1.0}, {"eps": 0.2}], ids=str)
def test_seesaw(options):
    settings = {"p": 0.8, "q": 2.0, "eps": 1e-2} | options
    loss, seen = SeesawLoss(COUNTS, **options), [0] * CLASSES
    for rows in (3, 40, 7):
        x, y = batch(rows)
        for label in y.tolist():
            seen[label] += 1
        value = loss(x, y)
        assert loss.cum_samples.tolist() == seen
        torch.testing.assert_close(value, published_seesaw(x, y, seen, **settings))
        agree(loss.eval(), lambda x, y: published_seesaw(x, y, seen, **settings), x, y)
        loss.train()
    assert loss.cum_samples.tolist() == seen


LOSSES = {
    "balanced_softmax": BalancedSoftmaxLoss,
    "focal": FocalLoss,
    "focal, gamma 0.5": lambda counts, **options: FocalLoss(counts, gamma=0.5, **options),
    "class_balanced": ClassBalancedLoss,
    "class_balanced, focal": lambda counts, **options: ClassBalancedLoss(counts, loss="focal", gamma=0.5, **options),
    "vs": VSLoss,
    "lade": LADELoss,
    "seesaw": SeesawLoss,
}
PLAIN = {  # the settings with which a loss is the cross-entropy
    "balanced_softmax": lambda **options: BalancedSoftmaxLoss([7] * CLASSES, **options),
    "focal": lambda **options: FocalLoss(COUNTS, gamma=0.0, **options),
    "class_balanced": lambda **options: ClassBalancedLoss(COUNTS, beta=0.0, **options),
    "vs": lambda **options: VSLoss(COUNTS, gamma=0.0, tau=0.0, **options),
    "lade": lambda **options: LADELoss([7] * CLASSES, estim_loss_weight=0.0, **options),
    "seesaw": lambda **options: SeesawLoss(COUNTS, p=0.0, q=0.0, **options),
}
TAKES_WEIGHTS = {name: not name.startswith("class_balanced") for name in LOSSES}  # whose weights are its own
TAKES_PROBABILITIES = [name for name in LOSSES if name != "seesaw"]


def settled(name, **options):
    """The loss, whose counts no longer change."""
    loss = LOSSES[name](COUNTS, **options)
    if name == "seesaw":
        loss.cum_samples += N.long()
    return loss.eval()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("pixels", [(), (4, 3)])
@pytest.mark.parametrize(
    ("name", "weighted"), [(name, weighted) for name in PLAIN for weighted in (False, True)[: 1 + TAKES_WEIGHTS[name]]]
)
def test_the_arguments_mean_what_they_mean_for_the_cross_entropy(name, weighted, pixels, reduction):
    x = torch.randn(5, CLASSES, *pixels, dtype=torch.float64) * 2
    labels, soft = torch.randint(CLASSES, (5, *pixels)), torch.rand(5, CLASSES, *pixels, dtype=torch.float64)
    labels[1] = 2
    weight = torch.rand(CLASSES) + 0.1 if weighted else None
    for smoothing in (0.0, 0.2):
        options = {"label_smoothing": smoothing, "reduction": reduction}
        loss = PLAIN[name](ignore_index=2, **options | ({"weight": weight} if weighted else {}))
        options["weight"] = None if weight is None else weight.double()
        agree(loss, lambda x, y, o=options: F.cross_entropy(x, y, ignore_index=2, **o), x, labels)
        if name in TAKES_PROBABILITIES:
            agree(loss, lambda x, t, o=options: F.cross_entropy(x, t, **o), x, soft)


@pytest.mark.parametrize("name", LOSSES)
def test_reductions_agree(name):
    x, y = batch()
    y[::5] = -100
    options = {"weight": torch.rand(CLASSES) + 0.1} if TAKES_WEIGHTS[name] else {}
    none, total, mean = (settled(name, reduction=r, **options)(x, y) for r in ("none", "sum", "mean"))
    weights = torch.where(y >= 0, settled(name, **options).weight.double()[y.clamp(min=0)], 0)
    assert none[::5].abs().max() == 0
    torch.testing.assert_close(total, none.sum())
    torch.testing.assert_close(mean, none.sum() / weights.sum())


@pytest.mark.parametrize("name", LOSSES)
def test_pixels_are_rows(name):
    x, y = torch.randn(3, CLASSES, 2, 5, dtype=torch.float64), torch.randint(CLASSES, (3, 2, 5))
    rows, labels = x.movedim(1, -1).reshape(-1, CLASSES), y.flatten()
    torch.testing.assert_close(settled(name)(x, y), settled(name)(rows, labels))
    none = settled(name, reduction="none")
    torch.testing.assert_close(none(x, y).flatten(), none(rows, labels))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_other_dtypes(name, dtype):
    """The loss is that of the rounded logits, even if the module was converted, and the counts stay exact."""
    x, y = batch(dtype=dtype)
    exact = x.double().requires_grad_()
    expected = settled(name)(exact, y)
    (expected_gradient,) = torch.autograd.grad(expected, exact)
    for loss in (settled(name), settled(name).to(dtype)):
        ours = x.clone().requires_grad_()
        value = loss(ours, y)
        assert value.dtype == torch.float32
        (gradient,) = torch.autograd.grad(value, ours)
        assert gradient.dtype == dtype
        torch.testing.assert_close(value.double(), expected, rtol=5e-6, atol=5e-6)
        off = (gradient.double() - expected_gradient).abs().max() / expected_gradient.abs().max()
        assert off < max(2e-5, 2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("name", "target"),
    [*((name, "labels") for name in LOSSES), *((name, "probabilities") for name in TAKES_PROBABILITIES)],
)
def test_finite_logits_give_finite_numbers(name, target, dtype):
    largest = torch.finfo(dtype).max
    values = torch.tensor(
        [0.0, 1.0, -1.0, 90.0, -90.0, 2e4, -2e4, largest, -largest, 1e-30, largest / 2], dtype=torch.float64
    )
    x = values[torch.randint(len(values), (300, CLASSES))].to(dtype)
    x[:4] = torch.tensor([[largest], [-largest], [0.0], [50.0]], dtype=dtype)
    x[4:10] = torch.eye(CLASSES).to(dtype) * 200  # a probability of 1
    y = torch.arange(300) % CLASSES
    if target == "probabilities":
        y = F.one_hot(y, CLASSES).to(dtype) * 0.5 + 0.5 / CLASSES
    for reduction in ("mean", "none"):
        ours = x.clone().requires_grad_()
        value = settled(name, reduction=reduction)(ours, y)
        assert value.isfinite().all()
        assert torch.autograd.grad(value.double().mean(), ours)[0].isfinite().all()


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "lade"])  # whose rows depend on each other
def test_a_row_that_is_not_finite_stays_alone(name):
    x, y = batch()
    bad = x.clone()
    bad[3, 1], bad[5, 2], y[5] = math.nan, math.nan, -100
    bad.requires_grad_()
    value = settled(name, reduction="none")(bad, y)
    assert value.isnan().tolist() == [row == 3 for row in range(16)]
    gradient = torch.autograd.grad(value[[0, 1, 2, 4, *range(5, 16)]].sum(), bad)[0]
    others = [row for row in range(16) if row != 3]
    assert gradient[others].isfinite().all()
    expected = settled(name, reduction="none")(x, y)
    torch.testing.assert_close(value[others], expected[others])


@pytest.mark.parametrize("name", LOSSES)
def test_any_strides(name):
    wide = torch.randn(CLASSES, 33, dtype=torch.float64)
    x, y = wide.T[::2], torch.randint(CLASSES, (34,))[::2]
    assert not x.is_contiguous()
    agree(settled(name), settled(name), x, y)
    torch.testing.assert_close(settled(name)(x, y), settled(name)(x.contiguous(), y.contiguous()))


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "seesaw"])  # its factors count as constants
def test_second_derivatives(name):
    x, y = batch(2)
    loss = settled(name)
    assert torch.autograd.gradgradcheck(lambda x: loss(x, y), x.requires_grad_(), atol=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        "lade",
        "seesaw",
        *(pytest.param(n, marks=pytest.mark.slow) for n in (*LOSSES, "gcl") if n not in ("lade", "seesaw")),
    ],
)
def test_compiled_as_a_whole(name):
    x, y = batch(dtype=torch.float32)
    x = x.tanh()
    y[2] = -100
    make = (lambda: GCLLoss(COUNTS).eval()) if name == "gcl" else (lambda: LOSSES[name](COUNTS))
    loss, compiled = make(), torch.compile(make(), fullgraph=True, backend="aot_eager")
    for _ in range(2):
        values = []
        for call in (loss, compiled):
            ours = x.clone().requires_grad_()
            value = call(ours, y)
            values.append((value.detach(), torch.autograd.grad(value, ours)[0]))
        torch.testing.assert_close(*values)
    if name == "seesaw":
        assert torch.equal(loss.cum_samples, compiled.cum_samples)
        assert loss.cum_samples.sum() == 30


def test_seesaw_keeps_its_counts():
    loss = SeesawLoss(COUNTS)
    for _ in range(3):
        loss(*batch(50))
    other = SeesawLoss(COUNTS).half()
    other.load_state_dict(loss.half().state_dict())
    assert other.cum_samples.dtype == torch.int64
    assert torch.equal(other.cum_samples, loss.cum_samples)
    x, y = batch()
    assert other.eval()(x, y) == loss.eval()(x, y)
    with pytest.raises(ValueError, match=r"target\[3\] is 6: expected a label in \[0, 6\)"):
        loss.train()(x, y.index_fill(0, torch.tensor(3), CLASSES))
    assert torch.equal(other.cum_samples, loss.cum_samples)


@pytest.mark.parametrize("reentrant", [False, True])
def test_seesaw_counts_once_in_a_checkpointed_pass(reentrant):
    x, y = batch()
    loss, other = SeesawLoss(COUNTS), SeesawLoss(COUNTS)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    value = checkpoint(lambda x: loss(x, y), ours, use_reentrant=reentrant)
    value.backward()
    other(theirs, y).backward()
    assert torch.equal(loss.cum_samples, other.cum_samples)
    assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: GCLLoss(COUNTS)(torch.rand(3, 4), torch.zeros(3).long()), r"cosine has shape \(3, 4\)"),
        (lambda: FocalLoss(COUNTS, gamma=-1), "gamma is -1"),
        (lambda: FocalLoss(COUNTS, weight=torch.rand(4)), r"weight has shape \(4,\): expected \(6,\)"),
        (lambda: ClassBalancedLoss(COUNTS, beta=1.0), r"beta is 1.0: expected a number in \[0, 1\)"),
        (lambda: ClassBalancedLoss(COUNTS, loss="sigmoid"), "loss is 'sigmoid': expected 'cross_entropy' or 'focal'"),
        (lambda: ClassBalancedLoss(COUNTS, gamma=-0.5), "gamma is -0.5"),
        (lambda: VSLoss(COUNTS, gamma=-0.5), "gamma is -0.5"),
        (lambda: VSLoss(COUNTS, tau=math.inf), "tau is inf"),
        (lambda: LADELoss(COUNTS, remine_lambda=-1), "remine_lambda is -1"),
        (lambda: LADELoss(COUNTS, estim_loss_weight=-1), "estim_loss_weight is -1"),
        (lambda: LADELoss(COUNTS, reduction="median"), "reduction is 'median'"),
        (lambda: GCLLoss(COUNTS, scale=0), "scale is 0"),
        (lambda: GCLLoss(COUNTS, noise_mul=-1), "noise_mul is -1"),
        (lambda: SeesawLoss(COUNTS, p=-1), "p is -1"),
        (lambda: SeesawLoss(COUNTS, q=-1), "q is -1"),
        (lambda: SeesawLoss(COUNTS, eps=0), r"eps is 0: expected a number in \(0, 1\]"),
        (lambda: BalancedSoftmaxLoss(COUNTS, label_smoothing=1.0), "label_smoothing is 1.0"),
        (lambda: VSLoss(COUNTS)(torch.rand(3, 4), torch.zeros(3).long()), r"logits has shape \(3, 4\)"),
    ],
)
def test_bad_settings(call, message):
    with pytest.raises(ValueError, match=message):
        call()
