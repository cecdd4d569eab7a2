"""Arguments that all losses on logits or features accept or reject, from one table of losses and one of arguments."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from ltfast import compat
from ltfast.compat import lift
from ltfast.losses import (
    AGCLLoss,
    BalancedBCELoss,
    BalancedSoftmaxLoss,
    ClassBalancedLoss,
    CompensationLoss,
    DSCLLoss,
    FocalLoss,
    GCLLoss,
    LADELoss,
    LDAMLoss,
    LogitAdjustedLoss,
    MemoryQueue,
    PBSDLoss,
    ProCoLoss,
    SeesawLoss,
    SupConQueueLoss,
    VSLoss,
)
from ltfast.losses.cross_entropy import shifted_cross_entropy

COUNTS = [400, 90, 30, 12, 5]
CLASSES, WIDTH, ROWS = len(COUNTS), 6, 8
SCRIPT = SimpleNamespace(cls_num=COUNTS, smoothing=0.1)


def proco():
    loss = ProCoLoss(CLASSES, WIDTH, class_counts=COUNTS)
    loss.update(unit(40), torch.arange(40) % CLASSES)
    return loss


def over_queue(loss):
    queue = MemoryQueue(WIDTH, 32, num_classes=CLASSES)
    queue.enqueue(unit(20), torch.arange(20) % CLASSES)
    return lambda query, labels: loss(query, query.detach(), labels, queue)


def in_one_batch(loss):
    """Arguments with DSCL's signature: queries, keys and queue in one tensor, with one label each."""
    rest, labels = unit(8), torch.arange(8) % CLASSES

    def call(query, target):
        if isinstance(query, torch.Tensor) and isinstance(target, torch.Tensor):
            return loss(torch.cat([query, query, rest]), torch.cat([target, target, labels.to(target.dtype)]))
        return loss(query, target)

    return call


def unit(rows):
    return F.normalize(torch.randn(rows, WIDTH), dim=1)


LOGITS = {
    "agcl": lambda: AGCLLoss(COUNTS),
    "agcl, balanced": lambda: AGCLLoss([7] * CLASSES),
    "balanced_bce": lambda: BalancedBCELoss(COUNTS),
    "logit_adjusted": lambda: LogitAdjustedLoss(COUNTS),
    "compensation": lambda: CompensationLoss(COUNTS, 3),
    "balanced_softmax": lambda: BalancedSoftmaxLoss(COUNTS),
    "class_balanced": lambda: ClassBalancedLoss(COUNTS),
    "class_balanced, focal": lambda: ClassBalancedLoss(COUNTS, loss="focal"),
    "focal": lambda: FocalLoss(COUNTS),
    "gcl": lambda: GCLLoss(COUNTS),
    "lade": lambda: LADELoss(COUNTS),
    "seesaw": lambda: SeesawLoss(COUNTS).eval(),
    "vs": lambda: VSLoss(COUNTS),
    "ldam": lambda: LDAMLoss(COUNTS),
    "ldam, weighted": lambda: LDAMLoss(COUNTS, weight=torch.rand(CLASSES)),
    "compat agcl": lambda: compat.AGCL(COUNTS),
    "compat agcl, focal": lambda: compat.AGCL(COUNTS, train_cls=True, gamma=1.0, weight=torch.rand(CLASSES)),
    "compat bce": lambda: compat.BCE_loss(SCRIPT, type="Bal"),
    "compat bce, none": lambda: compat.BCE_loss(SCRIPT, type="CB", reduction="none"),
    "compat ldam": lambda: compat.LDAMLoss(COUNTS, weight=torch.rand(CLASSES)),
    "compat logit_adjust": lambda: compat.LogitAdjust(COUNTS, weight=torch.rand(CLASSES)),
    "compat vs": lambda: compat.VSLoss(COUNTS, weight=torch.rand(CLASSES)),
    "lift ldam": lambda: lift.LDAMLoss(COUNTS),
    "lift reweight": lambda: lift.GeneralizedReweightLoss(COUNTS),
    "lift lade": lambda: lift.LADELoss(COUNTS),
}
FEATURES = {
    "proco": proco,
    "compat proco": lambda: compat.ProCoLoss(WIDTH, num_classes=CLASSES),
    "supcon": lambda: over_queue(SupConQueueLoss()),
    "dscl": lambda: over_queue(DSCLLoss()),
    "compat dscl": lambda: in_one_batch(compat.DSCLLoss(K=8)),
}
# accept (B, C, d1, ...), like cross-entropy, and probabilities too
DENSE_AND_SOFT = ("balanced_bce", "logit_adjusted", "compensation", "ldam", "ldam, weighted", "compat logit_adjust")
DENSE_AND_SOFT += ("compat ldam", "balanced_softmax", "class_balanced", "class_balanced, focal", "focal", "lade", "vs")
DENSE_AND_SOFT += ("compat vs", "lift ldam", "lift reweight", "lift lade")
DENSE = (*DENSE_AND_SOFT, "agcl", "agcl, balanced", "compat agcl", "gcl", "seesaw")
SOFT = (*DENSE_AND_SOFT, "compat bce", "compat bce, none")

IGNORING = [*LOGITS, "proco"]
CONTRASTIVE = ["supcon", "dscl", "compat dscl"]  # an anchor without a class would still be a negative


def arguments(name, rows=ROWS):
    if name in LOGITS:
        return LOGITS[name](), torch.rand(rows, CLASSES) * 2 - 1, torch.arange(rows) % CLASSES
    return FEATURES[name](), unit(rows), torch.arange(rows) % CLASSES


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8], ids=str)
@pytest.mark.parametrize("name", [*LOGITS, *FEATURES])
def test_labels_of_any_integer_dtype(name, dtype):
    loss, inputs, labels = arguments(name)
    state = torch.get_rng_state()
    expected = loss(inputs, labels)
    torch.set_rng_state(state)
    if name in ("proco", "compat proco"):  # calling the latter updates the statistics
        loss = FEATURES[name]() if name == "compat proco" else loss
    assert torch.equal(loss(inputs, labels.to(dtype)), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.complex64], ids=str)
@pytest.mark.parametrize("name", [*LOGITS, *FEATURES])
def test_labels_that_are_no_integers(name, dtype):
    loss, inputs, labels = arguments(name)
    with pytest.raises(TypeError, match=r"(target|labels) has dtype torch\.(float32|bool|complex64).*integer labels"):
        loss(inputs, labels.to(dtype))
    with pytest.raises(TypeError, match=r"(target|labels|features) is a list"):
        loss(inputs, labels.tolist())


@pytest.mark.parametrize("name", [*LOGITS, "proco", "compat proco"])
def test_an_empty_batch(name):
    """The mean of nothing is NaN, as for torch.nn.CrossEntropyLoss."""
    loss, inputs, labels = arguments(name)
    value, gradient = value_and_gradient(loss, inputs[:0], labels[:0])
    if name in ("compat bce, none", "compat proco"):  # elementwise losses, and logits
        assert value.shape == (0, CLASSES)
    else:
        assert value.isnan()
        assert value.shape == ()
    assert gradient.shape == (0, inputs.shape[1])


@pytest.mark.parametrize("name", CONTRASTIVE)
def test_an_empty_batch_has_no_anchors(name):
    loss, inputs, labels = arguments(name)
    with pytest.raises(ValueError, match=r"(features|query) has (shape \(0, 6\)|8 rows)"):
        loss(inputs[:0], labels[:0])


def ignoring(name, ignore_index, reduction="mean"):
    """A loss that ignores this label, without noise: removing rows would change the noise of the others."""
    options = {"ignore_index": ignore_index, "reduction": reduction}
    if name == "proco":
        loss = ProCoLoss(CLASSES, WIDTH, class_counts=COUNTS, ignore_index=ignore_index)
        loss.update(unit(40), torch.arange(40) % CLASSES)
        return loss
    return {
        "agcl": lambda: AGCLLoss(COUNTS, **options).eval(),
        "agcl, balanced": lambda: AGCLLoss([7] * CLASSES, gamma_pos=0.5, **options),
        "balanced_bce": lambda: BalancedBCELoss(COUNTS, label_smoothing=0.1, **options),
        "logit_adjusted": lambda: LogitAdjustedLoss(COUNTS, label_smoothing=0.1, **options),
        "compensation": lambda: CompensationLoss(COUNTS, 3, weight=torch.arange(1.0, 1 + CLASSES), **options),
        "balanced_softmax": lambda: BalancedSoftmaxLoss(COUNTS, label_smoothing=0.1, **options),
        "class_balanced": lambda: ClassBalancedLoss(COUNTS, label_smoothing=0.1, **options),
        "class_balanced, focal": lambda: ClassBalancedLoss(COUNTS, loss="focal", **options),
        "focal": lambda: FocalLoss(COUNTS, weight=torch.arange(1.0, 1 + CLASSES), **options),
        "gcl": lambda: GCLLoss(COUNTS, **options).eval(),
        "lade": lambda: LADELoss(COUNTS, **options),
        "seesaw": lambda: SeesawLoss(COUNTS, **options).eval(),
        "vs": lambda: VSLoss(COUNTS, label_smoothing=0.1, **options),
        "ldam": lambda: LDAMLoss(COUNTS, **options),
        "ldam, weighted": lambda: LDAMLoss(COUNTS, weight=torch.arange(1.0, 1 + CLASSES), **options),
    }.get(name, lambda: LOGITS[name]().eval())()


def value_and_gradient(loss, inputs, labels):
    inputs = inputs.detach().requires_grad_()
    value = loss(inputs, labels)
    (gradient,) = torch.autograd.grad(value * 3, inputs, torch.ones_like(value))
    return value.detach(), gradient


@pytest.mark.parametrize("name", IGNORING)
@pytest.mark.parametrize("ignore_index", [-100, 2, CLASSES + 3])
def test_ignored_labels_are_left_out(name, ignore_index):
    if name.startswith(("compat", "lift")) and ignore_index != -100:
        pytest.skip("the authors' signatures have no ignore_index")
    loss, (_, inputs, labels) = ignoring(name, ignore_index), arguments(name)
    inputs, labels = torch.cat([inputs, inputs.flip(0)]).double(), labels.repeat(2)
    labels[::5] = ignore_index
    kept = labels != ignore_index
    assert 0 < kept.sum() < len(labels)
    value, gradient = value_and_gradient(loss, inputs, labels)
    expected, of_kept = value_and_gradient(loss, inputs[kept], labels[kept])
    if name == "compat bce, none":  # the elementwise losses
        assert value[~kept].abs().max() == 0
        value = value[kept]
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient[kept], of_kept)
    assert gradient[~kept].abs().max() == 0


@pytest.mark.parametrize(
    "name",
    [name for name in LOGITS if not name.startswith(("compat", "lift")) and name != "lade"],  # whose rows share a term
)
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_ignored_labels_have_no_loss(name, reduction):
    loss, (_, inputs, labels) = ignoring(name, -100, reduction), arguments(name)
    labels[[1, 6]] = -100
    kept = labels != -100
    value, gradient = value_and_gradient(loss, inputs, labels)
    expected, of_kept = value_and_gradient(loss, inputs[kept], labels[kept])
    if reduction == "none":
        assert value[~kept].tolist() == [0, 0]
        value = value[kept]
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient[kept], of_kept)
    assert gradient[~kept].abs().max() == 0


@pytest.mark.parametrize("name", [name for name in IGNORING if name != "compat bce, none"])
def test_nothing_but_ignored_labels(name):
    """The loss is NaN, the mean of nothing, and has no gradient, like torch.nn.CrossEntropyLoss."""
    loss, (_, inputs, labels) = ignoring(name, -100), arguments(name)
    value, gradient = value_and_gradient(loss, inputs, torch.full_like(labels, -100))
    cross_entropy = value_and_gradient(torch.nn.CrossEntropyLoss(), inputs, torch.full_like(labels, -100))
    assert value.isnan()
    assert cross_entropy[0].isnan()
    assert gradient.abs().max() == cross_entropy[1].abs().max() == 0


@pytest.mark.parametrize("name", IGNORING)
def test_minus_100_is_ignored_by_default(name):
    loss, inputs, labels = arguments(name)
    labels[3] = -100
    assert loss(inputs, labels).isfinite().all()


@pytest.mark.parametrize("name", CONTRASTIVE)
def test_losses_over_a_queue_ignore_no_label(name):
    loss, inputs, labels = arguments(name)
    labels[3] = -100
    with pytest.raises(ValueError, match=r"^labels(\[3\] is| has) -100: expected"):
        loss(inputs, labels)


@pytest.mark.parametrize("make", [ProCoLoss, lambda classes, width: compat.ProCoLoss(width, num_classes=classes)])
def test_statistics_leave_ignored_labels_out(make):
    features, labels = unit(30), torch.arange(30) % CLASSES
    labels[::4] = -100
    whole, part = make(CLASSES, WIDTH), make(CLASSES, WIDTH)
    whole.update(features, labels)
    part.update(features[labels >= 0], labels[labels >= 0])
    for name, ours in whole.state_dict().items():
        torch.testing.assert_close(ours, part.state_dict()[name])
    assert whole.counts.sum() == (labels >= 0).sum()


@pytest.mark.parametrize("name", [name for name in IGNORING if not name.startswith(("compat", "lift"))])
def test_an_ignore_index_that_is_no_integer(name):
    for bad in (None, 1.5, "x"):
        with pytest.raises(TypeError, match="ignore_index is"):
            ignoring(name, bad)


@pytest.mark.parametrize(
    "make", [BalancedBCELoss, LogitAdjustedLoss, lambda counts, **k: CompensationLoss(counts, 3, **k)]
)
def test_probabilities_ignore_nothing(make):
    logits, soft = torch.randn(ROWS, CLASSES), torch.rand(ROWS, CLASSES).softmax(1)
    assert make(COUNTS, ignore_index=0)(logits, soft) == make(COUNTS)(logits, soft)


@pytest.mark.parametrize("name", [*LOGITS, *FEATURES])
def test_a_label_out_of_range(name):
    loss, inputs, labels = arguments(name)
    for wrong in (-1, -101, CLASSES):
        if name == "compat dscl" and wrong == CLASSES:
            continue  # it numbers its classes itself
        with pytest.raises(ValueError, match=r"^(target|labels)(\[3\]| has).*: expected (a )?labels?"):
            loss(inputs, labels.index_fill(0, torch.tensor(3), wrong))


@pytest.mark.parametrize("name", [*LOGITS, *(name for name in FEATURES if name != "compat dscl")])
def test_shapes_that_do_not_fit(name):
    loss, inputs, labels = arguments(name)
    columns = inputs.shape[1]
    named = r"^(cosine|logits?|x|features|query|target|labels)"
    for bad in (inputs[:, :1], inputs[:, :-1], torch.cat([inputs, inputs], 1), inputs[0], inputs[None]):
        with pytest.raises(ValueError, match=named):  # one of them has one column, which would be broadcast
            loss(bad, labels.clamp(max=bad.shape[-1] - 1))
    for bad in (labels[:1], labels[:-1], labels.repeat(2), labels.view(2, -1), labels[0]):
        with pytest.raises((ValueError, TypeError), match=named):
            loss(inputs, bad)
    if name not in DENSE:
        with pytest.raises(ValueError, match=named):
            loss(inputs[:, :, None].expand(-1, -1, columns), labels[:, None].expand(-1, columns))


def test_one_matrix_of_queries_keys_and_queue():
    loss = compat.DSCLLoss(K=8)
    features, labels = unit(12), torch.arange(12) % CLASSES
    assert loss(features, labels).isfinite()
    for bad in (
        (features[:11], labels[:11]),
        (features[:8], labels[:8]),
        (features, labels[:11]),
        (features[0], labels),
    ):
        with pytest.raises(ValueError, match=r"^(features|labels) has"):
            loss(*bad)


@pytest.mark.parametrize("name", DENSE)
def test_logits_of_every_pixel(name):
    """Same as for cross-entropy. The last axis has as many elements as there are classes."""
    loss = arguments(name)[0].eval()
    for shape in ((3, CLASSES, CLASSES), (2, CLASSES, 4, CLASSES)):
        logits = torch.rand(shape, dtype=torch.float64) * 2 - 1
        labels = torch.randint(CLASSES, (shape[0], *shape[2:]))
        flat = logits.movedim(1, -1).reshape(-1, CLASSES)
        torch.testing.assert_close(loss(logits, labels), loss(flat, labels.flatten()))
        if name not in SOFT:
            continue
        soft = torch.rand(shape, dtype=torch.float64).softmax(1)
        per_pixel = loss(flat, soft.movedim(1, -1).reshape(-1, CLASSES))
        torch.testing.assert_close(loss(logits, soft), per_pixel)
    prior = torch.tensor(COUNTS, dtype=torch.float64).log() - torch.tensor(COUNTS, dtype=torch.float64).sum().log()
    logits, labels = torch.randn(2, CLASSES, CLASSES, dtype=torch.float64), torch.randint(CLASSES, (2, CLASSES))
    expected = F.cross_entropy(logits + prior[None, :, None], labels)
    torch.testing.assert_close(LogitAdjustedLoss(COUNTS)(logits, labels), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", SOFT)
def test_soft_targets_that_do_not_fit(name):
    loss, logits, _ = arguments(name)
    soft = torch.rand(ROWS, CLASSES).softmax(1)
    expected = loss(logits, soft)
    torch.testing.assert_close(loss(logits, soft.double()), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(loss(logits, soft.bfloat16()), expected, rtol=2e-2, atol=2e-2)
    for bad in (soft[:, :1], soft[:1], soft[:, :-1], soft[:-1]):
        with pytest.raises((ValueError, TypeError), match=r"^target has shape"):
            loss(logits, bad)
    for bad in (soft.long(), soft > 0.5):
        with pytest.raises((ValueError, TypeError), match=r"^target has"):
            loss(logits, bad)


@pytest.mark.parametrize("name", ["ldam, weighted", "compat agcl, focal", "compat ldam", "compat logit_adjust"])
def test_class_weights_of_other_classes(name):
    loss, inputs, labels = arguments(name)
    loss.weight = torch.rand(CLASSES + 1)
    with pytest.raises(ValueError, match=r"weight has shape \(6,\): expected \(5,\)"):
        loss(inputs, labels)


def test_patches_that_do_not_fit():
    queue = MemoryQueue(WIDTH, 32)
    queue.enqueue(unit(20), torch.zeros(20, dtype=torch.int64))
    patches, key = F.normalize(torch.randn(3, 2, WIDTH), dim=-1), unit(3)
    loss = PBSDLoss()
    assert loss(patches, patches, key, queue).isfinite()
    for bad in ((patches[:1], patches, key), (patches, patches[:, :1], key), (patches, patches, key[:1])):
        with pytest.raises(ValueError, match=r"^(pooled|cropped|key) has shape"):
            loss(*bad, queue)
    with pytest.raises(TypeError, match=r"^key is a NoneType"):
        loss(patches, patches, None, queue)
    with pytest.raises(TypeError, match=r"^queue is a Tensor"):
        loss(patches, patches, key, queue.keys)
    as_list = [key, key]
    published = compat.PBSDLoss()
    assert published(as_list, as_list, key, queue.keys.T).isfinite()
    for name, bad in (
        ("small_qs", (as_list, [key, key[:1]], key)),  # a single row would be broadcast
        ("roi_features", ([key[:, :1], key], as_list, key)),
        ("roi_features", (as_list, as_list, key[:1])),
    ):
        with pytest.raises(ValueError, match=f"^{name}"):
            published(*bad, queue.keys.T)


def test_the_cross_entropy_names_its_arguments():
    shift = torch.zeros(CLASSES)
    with pytest.raises(ValueError, match=r"^scores has shape \(5,\)"):
        shifted_cross_entropy(torch.rand(CLASSES), shift, torch.tensor(0), names=("scores", "labels"))
    with pytest.raises(TypeError, match=r"^labels has dtype torch.bool"):
        shifted_cross_entropy(torch.rand(2, CLASSES), shift, torch.tensor([True, False]), names=("scores", "labels"))
    with pytest.raises(TypeError, match=r"^scores has dtype torch.int64"):
        shifted_cross_entropy(shift.long()[None], shift, torch.tensor([0]), names=("scores", "labels"))
