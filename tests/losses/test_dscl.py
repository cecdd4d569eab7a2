import pytest
import torch
import torch._dynamo.testing
from torch.nn import functional as F

import ltfast
from ltfast import compat
from ltfast.benchmark.cases import published_dscl as published
from ltfast.losses import DSCLLoss, MemoryQueue, PBSDLoss, SupConQueueLoss
from vectors import unit

LOSSES = {"dscl": (DSCLLoss, published.dscl), "supcon": (SupConQueueLoss, published.supcon)}
SIZES = [(1, 1, 2, 1), (3, 7, 5, 2), (17, 64, 33, 5), (40, 300, 128, 7)]  # batch, queue, width, classes
TOLERANCE = {torch.float64: (1e-10, 1e-10), torch.float32: (2e-6, 1e-5), torch.bfloat16: (1e-2, 1e-2)}


def filled_queue(size, width, classes, *, filled=None, dtype=torch.float64):
    queue = MemoryQueue(width, size, num_classes=classes, dtype=dtype)
    number = size if filled is None else filled
    if number:
        queue.enqueue(unit(number, width).to(dtype), torch.randint(classes, (number,)))
    return queue


def contents(queue):
    return queue.keys[: len(queue)], queue.labels[: len(queue)]


def with_gradients(function, *inputs):
    inputs = [x.detach().requires_grad_() for x in inputs]
    loss = function(*inputs)
    return loss, torch.autograd.grad(loss, inputs)


def check(actual, expected, dtype):
    """The tolerance of gradients is relative to the largest row; if they cancel, to their parts, 1 / (0.07 B)."""
    of_loss, of_gradient = TOLERANCE[dtype]
    # logits of up to 1 / 0.07 are rounded before they cancel
    assert abs(actual[0].double() - expected[0]) <= of_loss * max(3, abs(expected[0]))
    for one, other in zip(actual[1], expected[1], strict=True):
        error = (one.double() - other).norm(dim=-1).max()
        assert error <= of_gradient * max(other.norm(dim=-1).max(), 1 / 0.07 / len(other))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradients_are_the_published(name, sizes, dtype):
    batch, size, width, classes = sizes
    loss, reference = LOSSES[name]
    queue = filled_queue(size, width, classes, dtype=dtype)
    query, key, labels = unit(batch, width).to(dtype), unit(batch, width).to(dtype), torch.randint(classes, (batch,))
    expected = with_gradients(
        lambda q, k: reference(q, k, labels, contents(queue)[0].double(), contents(queue)[1]).mean(),
        query.double(), key.double(),
    )  # fmt: skip
    check(with_gradients(lambda q, k: loss()(q, k, labels, queue), query, key), expected, dtype)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("filled", [0, 5])
def test_a_queue_that_is_not_full(name, filled):
    loss, reference = LOSSES[name]
    queue = filled_queue(50, 6, 3, filled=filled)
    query, key, labels = unit(7, 6), unit(7, 6), torch.randint(3, (7,))
    assert len(queue) == filled
    expected = with_gradients(lambda q: reference(q, key, labels, *contents(queue)).mean(), query)
    check(with_gradients(lambda q: loss()(q, key, labels, queue), query), expected, torch.float64)


def test_an_anchor_without_positives_is_told_from_its_key_alone():
    query, key = unit(2, 4), unit(2, 4)
    labels, queue = torch.tensor([0, 1]), filled_queue(10, 4, 1)
    queue.labels.fill_(7)
    loss = DSCLLoss(temperature=0.5)(query, key, labels, MemoryQueue(4, 3, dtype=torch.float64))
    logits = query @ torch.cat([query, key]).T / 0.5
    logits[[0, 1], [0, 1]] = -torch.inf
    torch.testing.assert_close(loss, F.cross_entropy(logits, torch.tensor([2, 3])))


def test_extremes_are_finite():
    queue = filled_queue(20, 8, 2, dtype=torch.float32)
    query = unit(6, 8).float()
    for temperature in (1e-3, 0.01, 100.0):
        for key in (query, -query):
            loss, (gradient,) = with_gradients(
                lambda q, key=key, t=temperature: DSCLLoss(temperature=t)(q, key, torch.zeros(6, dtype=int), queue),
                query,
            )
            assert loss.isfinite()
            assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("sizes", [(1, 1, 1, 2), (3, 2, 7, 5), (9, 5, 100, 33)], ids=str)
def test_pbsd_is_the_published(sizes, dtype):
    batch, patches, size, width = sizes
    queue = filled_queue(size, width, 3, dtype=dtype)
    pooled, cropped, key = (
        x.to(dtype) for x in (unit(batch, patches, width), unit(batch, patches, width), unit(batch, width))
    )
    expected = with_gradients(
        lambda s: published.pbsd(pooled.double(), s, key.double(), queue.keys.double()).mean(), cropped.double()
    )
    check(with_gradients(lambda s: PBSDLoss()(pooled, s, key, queue), cropped), expected, dtype)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("of_key", [torch.float32, torch.float64])
def test_keys_of_a_wider_dtype_are_not_rounded(name, of_key):
    loss, reference = LOSSES[name]
    queue, labels = filled_queue(20, 9, 3, dtype=torch.float32), torch.randint(3, (6,))
    query, key = unit(6, 9).bfloat16(), unit(6, 9).to(of_key)
    expected = reference(query.double(), key.double(), labels, queue.keys.double(), queue.labels).mean()
    torch.testing.assert_close(loss()(query, key, labels, queue).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("of_pooled", TOLERANCE)
def test_pbsd_of_two_dtypes(of_pooled):
    queue, key = filled_queue(20, 9, 3, dtype=torch.float32), unit(6, 9)
    pooled, cropped = unit(6, 2, 9).to(of_pooled), unit(6, 2, 9).float()
    expected = published.pbsd(pooled.double(), cropped.double(), key, queue.keys.double()).mean()
    torch.testing.assert_close(PBSDLoss()(pooled, cropped, key, queue).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_bad_pooled_patch_shows_with_an_empty_queue_too(value):
    pooled = unit(4, 3, 5)
    pooled[1, 2, 0] = value
    assert PBSDLoss()(pooled, unit(4, 3, 5), unit(4, 5), MemoryQueue(5, 8)).isnan()


def test_pbsd_of_equal_patches_has_no_gradient():
    queue, patches, key = filled_queue(30, 5, 2), unit(4, 3, 5), unit(4, 5)
    _, (gradient,) = with_gradients(lambda s: PBSDLoss()(patches, s, key, queue), patches)
    assert gradient.abs().max() < 1e-14


def test_pbsd_with_an_empty_queue_is_zero():
    loss = PBSDLoss()(unit(4, 3, 5), unit(4, 3, 5), unit(4, 5), MemoryQueue(5, 8, dtype=torch.float64))
    torch.testing.assert_close(loss, torch.zeros_like(loss), atol=1e-14, rtol=0)


def test_all_rows_of_a_step_through_the_queue_at_once():
    queue = filled_queue(64, 8, 4)
    query, key, labels, pooled, cropped = unit(5, 8), unit(5, 8), torch.randint(4, (5,)), unit(5, 3, 8), unit(5, 3, 8)
    attended = queue.attend(query, pooled.flatten(0, 1), cropped.flatten(0, 1), temperature=0.07)
    torch.testing.assert_close(
        DSCLLoss()(query, key, labels, queue, attended[0]), DSCLLoss()(query, key, labels, queue)
    )
    torch.testing.assert_close(
        PBSDLoss()(pooled, cropped, key, queue, tuple(attended[1:])), PBSDLoss()(pooled, cropped, key, queue)
    )


@pytest.mark.parametrize("base", [None, 0.1])
def test_compat(base):
    batch, size, width = 6, 40, 9
    queue = filled_queue(size, width, 3)
    query, key, labels = unit(batch, width), unit(batch, width), torch.randint(3, (batch,))
    factor = 1 if base is None else 0.2 / base
    theirs = compat.DSCLLoss(temperature=0.2, base_temperature=base, K=size, weighted_beta=4.0)
    actual = with_gradients(
        lambda q, k: theirs(torch.cat([q, k, queue.keys]), torch.cat([labels, labels, queue.labels])), query, key
    )
    expected = with_gradients(
        lambda q, k: factor
        * published.dscl(q, k, labels, queue.keys, queue.labels, temperature=0.2, beta=4.0).mean(),
        query, key,
    )  # fmt: skip
    check(actual, expected, torch.float64)
    pooled, cropped = unit(batch, 5, width), unit(batch, 5, width)
    theirs = compat.PBSDLoss(temperature=0.2, base_temperature=base)
    actual = with_gradients(
        lambda s: theirs(list(pooled.unbind(1)), list(s.unbind(1)), key, queue.keys.T, labels, queue.labels), cropped
    )
    expected = with_gradients(
        lambda s: factor * published.pbsd(pooled, s, key, queue.keys, temperature=0.2).mean(), cropped
    )
    check(actual, expected, torch.float64)


def test_compat_takes_labels_of_any_size():
    """The sums of 10^12 classes would not fit into memory."""
    batch, size, width = 6, 40, 9
    features, labels = unit(2 * batch + size, width), torch.randint(3, (2 * batch + size,))
    labels[batch : 2 * batch] = labels[:batch]
    large = torch.tensor([7, 10**12, 10**12 + 1])[labels]
    loss = compat.DSCLLoss(temperature=0.2, K=size)
    expected = published.dscl(
        *features[: 2 * batch].chunk(2), labels[:batch], features[2 * batch :], labels[2 * batch :],
        temperature=0.2, beta=8.0,
    ).mean()  # fmt: skip
    torch.testing.assert_close(loss(features, large), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_gradcheck(backend):
    queue = filled_queue(11, 4, 3)
    query, key, labels = unit(5, 4).requires_grad_(), unit(5, 4).requires_grad_(), torch.randint(3, (5,))
    with ltfast.backend(backend):
        loss = DSCLLoss(temperature=0.3)
        assert torch.autograd.gradcheck(lambda q, k: loss(q, k, labels, queue), (query, key))
        assert torch.autograd.gradgradcheck(lambda q, k: loss(q, k, labels, queue), (query, key))


def test_the_queue_may_move_on_before_the_backward_pass():
    query, key, labels = unit(5, 4), unit(5, 4), torch.randint(3, (5,))

    def gradient(enqueue_first):
        torch.manual_seed(0)
        queue, leaf = filled_queue(11, 4, 3), query.clone().requires_grad_()
        loss = DSCLLoss()(leaf, key, labels, queue)
        if enqueue_first:
            queue.enqueue(key, labels)
        return torch.autograd.grad(loss, leaf, create_graph=enqueue_first == "twice")[0]

    assert torch.equal(gradient(True), gradient(False))
    with pytest.raises(RuntimeError, match="keys changed in place since the forward pass"):
        gradient("twice")


@pytest.mark.slow
def test_compiled_whole():
    queue = filled_queue(30, 8, 3, dtype=torch.float32)
    query, key, labels = unit(6, 8).float(), unit(6, 8).float(), torch.randint(3, (6,))
    pooled, cropped = unit(6, 2, 8).float(), unit(6, 2, 8).float()
    contrast, distil = DSCLLoss(), PBSDLoss()

    def step(query, cropped):
        return contrast(query, key, labels, queue) + distil(pooled, cropped, key, queue)

    compiled = torch.compile(step, fullgraph=True)
    for one, other in zip(*(with_gradients(f, query, cropped)[1] for f in (step, compiled)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_filling_queue_is_compiled_once():
    queue = MemoryQueue(8, 50, num_classes=3)
    loss, counter = DSCLLoss(), torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(lambda q, k, y: loss(q, k, y, queue), fullgraph=True, backend=counter)
    for _ in range(6):
        query, key, labels = unit(9, 8).float(), unit(9, 8).float(), torch.randint(3, (9,))
        torch.testing.assert_close(compiled(query, key, labels), loss(query, key, labels, queue))
        queue.enqueue(key, labels)
    assert counter.frame_count == 1


def test_bad_input():
    queue, query, labels = MemoryQueue(4, 8), torch.randn(3, 4), torch.tensor([0, 1, 2])
    for loss in (DSCLLoss, SupConQueueLoss, PBSDLoss):
        with pytest.raises(ValueError, match=r"temperature is 0\.0: expected a number over 0"):
            loss(temperature=0.0)
    with pytest.raises(ValueError, match="beta is -1: expected a finite number of 0 or more"):
        DSCLLoss(beta=-1)
    for loss in (compat.DSCLLoss, compat.PBSDLoss):
        with pytest.raises(ValueError, match="base_temperature is 0: expected a number over 0"):
            loss(base_temperature=0)
    loss = DSCLLoss()
    with pytest.raises(ValueError, match=r"query has shape \(3, 5\): expected \(batch, 4\), the queue's width"):
        loss(torch.randn(3, 5), torch.randn(3, 5), labels, queue)
    with pytest.raises(ValueError, match=r"key has shape \(2, 4\): expected \(3, 4\), the queries' shape"):
        loss(query, query[:2], labels, queue)
    with pytest.raises(ValueError, match=r"labels has shape \(2,\): expected \(3,\), one label per row"):
        loss(query, query, labels[:2], queue)
    with pytest.raises(ValueError, match=r"labels has -1: expected labels of 0 or more"):
        loss(query, query, labels - 1, queue)
    with pytest.raises(ValueError, match=r"labels\[2\] is 2: expected a label in \[0, 2\)"):
        loss(query, query, labels, MemoryQueue(4, 8, num_classes=2))
    with pytest.raises(ValueError, match=r"pooled has shape \(3, 4\): expected \(batch, patches, width\), not empty"):
        PBSDLoss()(query, query, query, queue)
    with pytest.raises(ValueError, match=r"pooled has shape .3, 4.: expected .6, 4., the queries' shape"):
        PBSDLoss()(query[:, None], torch.randn(3, 2, 4), query, queue)
    with pytest.raises(ValueError, match=r"key has shape \(2, 4\): expected \(3, 4\)"):
        PBSDLoss()(query[:, None], query[:, None], query[:2], queue)
    with pytest.raises(ValueError, match=r"features has 8 rows: expected 2 B \+ 3, queries, keys and queue"):
        compat.DSCLLoss(K=3)(torch.randn(8, 4), torch.zeros(8, dtype=int))
    with pytest.raises(ValueError, match="labels has -1: expected labels of 0 or more"):
        compat.DSCLLoss(K=4)(torch.randn(8, 4), torch.zeros(8, dtype=int) - 1)
    with pytest.raises(TypeError, match=r"labels has dtype torch\.float32: expected integer labels"):
        compat.DSCLLoss(K=4)(torch.randn(8, 4), torch.zeros(8))
