import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import Dataset, Subset, TensorDataset

from ltfast import compat
from ltfast.compat import lift
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
    LogitAdjustedLoss,
    ProCoLoss,
    SeesawLoss,
    VSLoss,
)
from ltfast.ops.core.class_counts import parse_class_counts

COUNTS = [1000, 300, 100, 50, 20, 5]
EVERY = [AGCLLoss, BalancedBCELoss, LogitAdjustedLoss, LDAMLoss, lambda counts: CompensationLoss(counts, 3)]
EVERY += [BalancedSoftmaxLoss, ClassBalancedLoss, FocalLoss, GCLLoss, LADELoss, SeesawLoss, VSLoss]
EVERY_NAMES = ["agcl", "balanced_bce", "logit_adjusted", "ldam", "compensation"]
EVERY_NAMES += ["balanced_softmax", "class_balanced", "focal", "gcl", "lade", "seesaw", "vs"]


def batch(rows=16):
    return torch.rand(rows, len(COUNTS)) * 2 - 1, torch.randint(len(COUNTS), (rows,))


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([5, 0, 3], r"class_counts\[1\] is 0"),
        ([5, 2, -3], r"class_counts\[2\] is -3"),
        ([5, math.nan, 3], r"class_counts\[1\] is nan"),
        ([5, math.inf, 3], r"class_counts\[1\] is inf"),
        ([[5, 3]], r"class_counts has shape \(1, 2\)"),
        ([], r"class_counts has shape \(0,\)"),
    ],
)
@pytest.mark.parametrize("loss", EVERY, ids=EVERY_NAMES)
def test_bad_class_counts(loss, counts, message):
    with pytest.raises(ValueError, match=message):
        loss(counts)


@pytest.mark.parametrize("loss", EVERY, ids=EVERY_NAMES)
@pytest.mark.parametrize(
    "counts",
    [
        tuple(COUNTS),
        torch.tensor(COUNTS),
        torch.tensor(COUNTS).double(),
        np.array(COUNTS, dtype=np.uint16),
        np.array(COUNTS[::-1], dtype=np.float32)[::-1],
        [np.int64(count) for count in COUNTS],
        [torch.tensor(count) for count in COUNTS],
        dict(enumerate(COUNTS)).values(),
        dict(reversed(list(enumerate(COUNTS)))),
        Counter(np.repeat(np.arange(len(COUNTS)), COUNTS)),
        Counter(torch.arange(len(COUNTS)).repeat_interleave(torch.tensor(COUNTS)).tolist()),
    ],
    ids=lambda counts: type(counts).__name__,
)
def test_counts_come_in_any_form(loss, counts):
    buffers, expected = loss(counts).buffers(), loss(COUNTS).buffers()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(buffers, expected, strict=True))


@pytest.mark.parametrize("loss", EVERY, ids=EVERY_NAMES)
@pytest.mark.parametrize(
    ("counts", "error", "message"),
    [
        ("531", TypeError, "class_counts is of type str"),
        ({5, 3, 1}, TypeError, "class_counts is of type set"),
        (None, TypeError, "class_counts is of type NoneType"),
        (5, TypeError, "class_counts is of type int"),
        ([5, None, 1], TypeError, r"class_counts\[1\] is None"),
        (["5", "3"], TypeError, r"class_counts\[0\] is '5'"),
        ([5, True], TypeError, r"class_counts\[1\] is True"),
        (np.array([True, False]), TypeError, "class_counts has dtype bool"),
        (torch.tensor([True, False]), TypeError, r"class_counts has dtype torch\.bool"),
        ([[5], [3, 1]], TypeError, "class_counts is nested"),
        ([5, [3]], TypeError, "class_counts is nested"),
        (np.array(5), ValueError, r"class_counts has shape \(\)"),
        ({0: 5, 2: 3}, ValueError, "no count of label 1"),
        ({1: 5, 2: 3}, ValueError, "no count of label 0"),
        (Counter([0, 0, 3, 1]), ValueError, "no count of label 2"),
        ({-1: 5, 0: 3}, ValueError, "-1 among them, and no count of label 1"),
        ({"cat": 5, "dog": 3}, TypeError, "class_counts has the label 'cat'"),
        (Counter(torch.tensor([0, 1])), TypeError, r"class_counts has the label tensor\(0\)"),
        ({0: 5, 1: 0}, ValueError, r"class_counts\[1\] is 0"),
    ],
    ids=str,
)
def test_counts_that_are_no_numbers_or_lack_a_class(loss, counts, error, message):
    with pytest.raises(error, match=message):
        loss(counts)


class Images(Dataset):
    """A data set as those of torchvision: the labels are in ``targets``."""

    def __init__(self, targets, classes=None):
        self.targets = targets
        if classes is not None:
            self.classes = classes


LABELS = torch.arange(len(COUNTS)).repeat_interleave(torch.tensor(COUNTS))


@pytest.mark.parametrize(
    "targets",
    [LABELS, LABELS.tolist(), LABELS.numpy().astype(np.uint16), list(LABELS)],
    ids=["tensor", "list", "array", "list of tensors"],
)
@pytest.mark.parametrize("loss", EVERY, ids=EVERY_NAMES)
def test_counts_of_a_data_set(loss, targets):
    plain = Images(targets)
    of_subset = Subset(Subset(plain, range(len(LABELS))), torch.randperm(len(LABELS)).tolist())
    for images in (plain, Images(targets, [f"class {c}" for c in range(len(COUNTS))]), of_subset):
        for ours, expected in zip(loss(images).buffers(), loss(COUNTS).buffers(), strict=True):
            assert torch.equal(ours, expected)


def test_counts_of_a_subset():
    counts = parse_class_counts(Subset(Images([2, 0, 1, 1, 2, 0]), [0, 1, 2, 3]))
    assert counts.tolist() == [1, 2, 1]


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (TensorDataset(torch.zeros(3)), TypeError, "class_counts is a data set of type TensorDataset without"),
        (Images([0, 2]), ValueError, r"without an image of class 1.*class_counts=torch\.bincount"),
        (Images([0, 1], ["a", "b", "c"]), ValueError, r"class 2: expected an image of each of the 3.*bincount"),
        (Subset(Images([0, 1, 2]), [0, 1]), ValueError, "class 2: expected an image of each of the 3"),
        (Images([0, 5], ["a", "b"]), ValueError, r"label 5: expected labels in \[0, 2\).*bincount"),
        (Images([-1, 0]), ValueError, "label -1: expected labels of 0 or more"),
        (Images([]), ValueError, r"have shape \(0,\)"),
        (Images([[0, 1], [1, 0]]), ValueError, r"have shape \(2, 2\): expected one label an image.*bincount"),
        (Images([0.5]), TypeError, r"have dtype torch\.float32: expected integer labels"),
        (Images([True, False]), TypeError, r"have dtype torch\.bool"),
        (Images(["cat"]), TypeError, "the targets of class_counts are no numbers"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_data_sets_without_counts(images, error, message):
    with pytest.raises(error, match=message):
        LogitAdjustedLoss(images)


def test_every_constructor_reads_counts_alike():
    mapping, gap = dict(reversed(list(enumerate(COUNTS)))), {0: 5, 2: 3}
    assert torch.equal(ProCoLoss(6, 4, class_counts=mapping).log_prior, ProCoLoss(6, 4, class_counts=COUNTS).log_prior)
    for name, make in (
        ("cls_num_list", compat.AGCL),
        ("cls_num_list", compat.LDAMLoss),
        ("cls_num_list", compat.LogitAdjust),
        ("cls_num_list", compat.VSLoss),
        ("cls_num_list", lift.LDAMLoss),
        ("cls_num_list", lift.ClassBalancedLoss),
        ("cls_num_list", lift.LADELoss),
        (r"args\.cls_num", lambda counts: compat.BCE_loss(SimpleNamespace(cls_num=counts), type="Bal")),
        (r"args\.cls_num", lambda counts: compat.BCE_loss(SimpleNamespace(cls_num=counts), type="CB")),
    ):
        ours, expected = make(mapping).buffers(), make(COUNTS).buffers()
        assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
        with pytest.raises(ValueError, match=rf"^{name} has 2 labels.*no count of label 1"):
            make(gap)
        with pytest.raises(TypeError, match=rf"^{name} is of type str"):
            make("531")


@pytest.mark.parametrize("loss", EVERY, ids=EVERY_NAMES)
def test_buffers_move_but_those_of_arguments_are_not_saved(loss):
    module = loss(COUNTS)
    assert list(module.state_dict()) == (["cum_samples"] if loss is SeesawLoss else [])  # which no argument gives
    assert all(buffer.device.type == "meta" for buffer in module.to("meta").buffers())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: AGCLLoss(COUNTS, variant="theirs"), "variant is 'theirs'"),
        (lambda: AGCLLoss(COUNTS, label_smoothing=1.0), "label_smoothing is 1.0"),
        (lambda: AGCLLoss(COUNTS, noise_mul=-1.0), "noise_mul is -1.0"),
        (lambda: AGCLLoss(COUNTS, scale=0.0)(*batch()), "scale is 0.0"),
        (lambda: AGCLLoss(COUNTS)(batch()[0][:, :4], batch()[1]), r"cosine has shape \(16, 4\): expected \(batch, 6\)"),
        (lambda: LDAMLoss(COUNTS, scale=0.0), "scale is 0.0"),
        (lambda: LDAMLoss(COUNTS, max_margin=-0.1), "max_margin is -0.1"),
        (lambda: LDAMLoss(COUNTS, reduction="median"), "reduction is 'median'"),
        (lambda: LDAMLoss(COUNTS, weight=torch.rand(4)), r"weight has shape \(4,\): expected \(6,\)"),
        (lambda: LDAMLoss(COUNTS)(batch()[0][:, :4], batch()[1]), r"cosine has shape \(16, 4\): expected \(batch, 6\)"),
        (lambda: BalancedBCELoss([7]), r"class_counts has shape \(1,\).*at least 2"),
        (lambda: CompensationLoss(COUNTS, 4), "stage is 4"),
        (lambda: CompensationLoss(COUNTS, 2, rho=1.0), "rho is 1.0"),
        (lambda: CompensationLoss(COUNTS, 2, preferred=[0, 6]), r"preferred has class 6: expected classes in \[0, 6\)"),
    ],
)
def test_bad_settings(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def published_agcl(cosine, target, counts, noise, gamma_pos, gamma_neg, variant, scale=20.0, margin=0.1, noise_mul=0.5):
    """The loss as stated in the paper and its code, in float64."""
    cosine, classes = cosine.double(), cosine.shape[1]
    rarity = torch.tensor(counts).double().log().max() - torch.tensor(counts).double().log()
    if variant == "official":
        rarity = rarity / rarity.max()
        smoothing = 0.1
    else:
        smoothing, margin = 0.0, 0.0
    own = F.one_hot(target, classes).double()
    log_p = torch.log_softmax(scale * (cosine - noise_mul * noise * rarity - margin * own), 1)
    p = log_p.exp()
    weight = own * (1 - p) ** gamma_pos + (1 - own) * p**gamma_neg
    if variant == "official":
        return -((own * (1 - smoothing) + smoothing / classes) * weight * log_p).sum(1).mean()
    return -(weight * log_p).sum(1).mean()


@pytest.mark.parametrize("variant", ["official", "paper"])
@pytest.mark.parametrize(("gamma_pos", "gamma_neg"), [(0.0, 4.0), (0.5, 8.0)])
def test_agcl_is_the_published_loss(variant, gamma_pos, gamma_neg):
    from ltfast.ops.noise import draw_seed, half_normal

    cosine, target = batch()
    loss = AGCLLoss(COUNTS, variant=variant, gamma_pos=gamma_pos, gamma_neg=gamma_neg)
    ours = loss(cosine, target, generator=torch.Generator().manual_seed(3))
    noise = half_normal(*cosine.shape, draw_seed(cosine.device, torch.Generator().manual_seed(3)))
    torch.testing.assert_close(
        ours.double(), published_agcl(cosine, target, COUNTS, noise, gamma_pos, gamma_neg, variant), rtol=2e-6, atol=0
    )


def test_agcl_on_balanced_classes_has_no_noise():
    cosine, target = batch()
    loss = AGCLLoss([10] * len(COUNTS))
    assert loss(cosine, target) == loss(cosine, target)


def test_agcl_lowers_rare_classes_more():
    cosine = torch.zeros(4000, len(COUNTS))
    loss = AGCLLoss(COUNTS, gamma_neg=0.0, label_smoothing=0.0, reduction="none")
    means = torch.stack([loss(cosine, torch.full((4000,), c)).mean() for c in range(len(COUNTS))])
    assert (means.diff() > 0).all()


def test_balanced_bce_is_the_published_loss():
    logits, target = batch()
    prior = torch.tensor(COUNTS).double() / sum(COUNTS)
    z = logits.double() + 0.7 * (prior.log() - (1 - prior).log())
    hot = F.one_hot(target, len(COUNTS)).double() * 0.9 + 0.1 / len(COUNTS)
    expected = F.binary_cross_entropy_with_logits(z, hot, reduction="none").sum(1).mean()
    ours = BalancedBCELoss(COUNTS, tau=0.7, label_smoothing=0.1)(logits, target)
    torch.testing.assert_close(ours.double(), expected, rtol=2e-6, atol=0)


def test_logit_adjustment_by_hand():
    logits, target = batch()
    prior = torch.tensor(COUNTS) / sum(COUNTS)
    expected = F.cross_entropy(logits + 1.5 * prior.log(), target)
    torch.testing.assert_close(LogitAdjustedLoss(COUNTS, tau=1.5)(logits, target), expected)


def plain_ldam(cosine, target, counts, weight, scale, max_margin):
    """The losses and the weights of the rows, in float64."""
    fourth_roots = torch.tensor(counts).double() ** 0.25
    margins = max_margin * fourth_roots.min() / fourth_roots
    scores = scale * (cosine.double() - margins[target][:, None] * F.one_hot(target, len(counts)))
    losses = scores.exp().sum(1).log() - scores.gather(1, target[:, None]).squeeze(1)
    weights = torch.ones(len(target)).double() if weight is None else weight.double()[target]
    return weights * losses, weights


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_ldam_by_hand(weighted, reduction):
    cosine, target = batch()
    weight = torch.rand(len(COUNTS)) + 0.1 if weighted else None
    ours, plain = cosine.clone().requires_grad_(), cosine.double().requires_grad_()
    loss = LDAMLoss(COUNTS, scale=20.0, max_margin=0.7, weight=weight, reduction=reduction)(ours, target)
    losses, weights = plain_ldam(plain, target, COUNTS, weight, 20.0, 0.7)
    expected = {"mean": losses.sum() / weights.sum(), "sum": losses.sum(), "none": losses}[reduction]
    torch.testing.assert_close(loss.double(), expected, rtol=5e-6, atol=1e-6)
    (gradient,) = torch.autograd.grad(loss.sum(), ours)
    (of_plain,) = torch.autograd.grad(expected.sum(), plain)
    torch.testing.assert_close(gradient.double(), of_plain, rtol=0, atol=2e-5 * of_plain.abs().max().item())


def test_ldam_margins():
    margins = LDAMLoss([10000, 625, 16, 1]).margins
    torch.testing.assert_close(margins, torch.tensor([0.05, 0.1, 0.25, 0.5]))  # proportional to 1 / n^(1/4)
    assert LDAMLoss(COUNTS).margins.max() == 0.5
    torch.testing.assert_close(LDAMLoss([7, 7, 7], max_margin=0.3).margins, torch.full((3,), 0.3))
    cosine, target = batch()
    torch.testing.assert_close(LDAMLoss(COUNTS, max_margin=0)(cosine, target), F.cross_entropy(30 * cosine, target))


def test_ldam_on_one_class_and_on_large_logits():
    assert LDAMLoss([7])(torch.rand(4, 1), torch.zeros(4, dtype=torch.int64)) == 0
    cosine, target = torch.tensor([[1e28, -1e28]]).requires_grad_(), torch.tensor([0])
    loss = LDAMLoss([1, 9])
    with pytest.warns(UserWarning, match="LDAMLoss: cosine has a value of size 1e"):
        assert loss(cosine, target) == 0
    far = loss(cosine, 1 - target)
    torch.testing.assert_close(far, torch.tensor(6e29))
    assert torch.autograd.grad(far, cosine)[0].tolist() == [[30, -30]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_ldam_in_other_dtypes(dtype):
    """The loss is that of the rounded cosines, even if the module was converted."""
    cosine, target = batch()
    cosine = cosine.to(dtype).requires_grad_()
    loss = LDAMLoss(COUNTS, weight=torch.rand(len(COUNTS)))(cosine, target)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    loss.backward()
    assert cosine.grad.dtype == dtype
    halved = LDAMLoss(COUNTS).to(dtype)(cosine, target)
    expected = LDAMLoss(COUNTS)(cosine.double(), target)
    torch.testing.assert_close(halved.double(), expected, rtol=0, atol=30 * torch.finfo(dtype).eps + 1e-6)


def test_ldam_weights_can_be_set_between_steps():
    cosine, target = batch()
    weight = torch.rand(len(COUNTS))
    loss = LDAMLoss(COUNTS)
    before = loss(cosine, target)
    loss.weight = weight
    assert loss(cosine, target) == LDAMLoss(COUNTS, weight=weight)(cosine, target)
    assert loss.state_dict() == {}
    loss.weight = None
    assert loss(cosine, target) == before
    with pytest.raises(TypeError, match="weight is a list"):
        LDAMLoss(COUNTS, weight=[1.0] * len(COUNTS))


def test_compensation_by_hand():
    logits, target = batch()
    one, two, three = (CompensationLoss(COUNTS, stage, rho=0.7)(logits, target) for stage in (1, 2, 3))
    torch.testing.assert_close(one, F.cross_entropy(logits, target))
    # Medium classes have 20 to 100 images, inclusive.
    alpha = torch.tensor([0.3, 0.3, 0.7, 0.7, 0.7, 0.3])
    torch.testing.assert_close(two, F.cross_entropy(logits - alpha.log(), target))
    chosen = CompensationLoss(COUNTS, 2, rho=0.7, preferred=[0, 5])(logits, target)
    torch.testing.assert_close(chosen, F.cross_entropy(logits - alpha[[2, 0, 0, 0, 0, 2]].log(), target))
    reversed_counts = torch.tensor(COUNTS[::-1]) / sum(COUNTS)
    torch.testing.assert_close(three, F.cross_entropy(logits - reversed_counts.log(), target))


def test_compensation_does_not_depend_on_the_order_of_the_classes():
    logits, target = batch()
    order = torch.randperm(len(COUNTS))
    place = order.argsort()
    shuffled = CompensationLoss(torch.tensor(COUNTS)[order], 3)(logits[:, order], place[target])
    torch.testing.assert_close(shuffled, CompensationLoss(COUNTS, 3)(logits, target))


@pytest.mark.parametrize(
    "make",
    [
        lambda noise: AGCLLoss(COUNTS, noise_mul=noise),
        lambda noise: AGCLLoss(COUNTS, noise_mul=noise, class_parallel=True),
        lambda noise: GCLLoss(COUNTS, noise_mul=noise),
        lambda noise: compat.AGCL(COUNTS, noise_mul=noise),
        lambda noise: compat.AGCL(COUNTS, noise_mul=noise, train_cls=True, gamma=2.0),
    ],
    ids=["loss", "class_parallel", "gcl", "compat", "compat, focal"],
)
def test_nothing_is_drawn_in_evaluation_mode(make):
    cosine, target = batch()
    loss, quiet = make(1.0), make(0.0)
    before = torch.get_rng_state()
    noisy = loss(cosine, target)
    assert not torch.equal(torch.get_rng_state(), before)
    before = torch.get_rng_state()
    assert loss.eval()(cosine, target) == quiet(cosine, target)
    assert torch.equal(torch.get_rng_state(), before)
    assert noisy != quiet(cosine, target)
    assert loss.train()(cosine, target) != loss(cosine, target)


@pytest.mark.parametrize("make", [LogitAdjustedLoss, lambda counts, **options: CompensationLoss(counts, 3, **options)])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("pixels", [(), (4, 3)])
def test_the_arguments_of_the_cross_entropy(make, reduction, pixels):
    counts = [500, 60, 7, 30, 90]
    logits = torch.randn(6, 5, *pixels, dtype=torch.float64)
    labels, soft = torch.randint(5, (6, *pixels)), torch.rand(6, 5, *pixels, dtype=torch.float64)
    labels[1] = 2
    options = {"label_smoothing": 0.2, "reduction": reduction, "weight": torch.rand(5) + 0.1}
    loss = make(counts, ignore_index=2, **options)
    shift = loss.shift.view(-1, *[1] * len(pixels))
    options["weight"] = options["weight"].double()
    for target, ignored in ((labels, {"ignore_index": 2}), (soft, {})):
        expected = F.cross_entropy(logits + shift, target, **options, **ignored)
        torch.testing.assert_close(loss(logits, target), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("make", [LogitAdjustedLoss, lambda counts: CompensationLoss(counts, 2)])
def test_the_cross_entropy_is_in_float32(make, dtype):
    logits = torch.randn(4, 3).to(dtype)
    target = torch.tensor([0, 1, 2, 0])
    value = make([500, 60, 7])(logits, target)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, make([500, 60, 7])(logits.double(), target).float())
