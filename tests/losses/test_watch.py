"""Losses warn once about unsuitable inputs, and do not warn about suitable ones."""

import pickle
import time
import warnings
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

from ltfast import compat
from ltfast.losses import (
    AGCLLoss,
    DSCLLoss,
    GCLLoss,
    LDAMLoss,
    MemoryQueue,
    PBSDLoss,
    ProCoLoss,
    SupConQueueLoss,
)
from ltfast.losses.watch import Watch
from ltfast.models import CosineClassifier
from ltfast.ops.core import checks

COUNTS = [500, 40, 3]
CLASSES, WIDTH, ROWS = len(COUNTS), 8, 12
LABELS = torch.arange(ROWS) % CLASSES


def unit(*shape):
    return F.normalize(torch.randn(*shape, WIDTH), dim=-1)


def repeat(times, call):
    for _ in range(times):
        call()


def queue_of(length):
    queue = MemoryQueue(WIDTH, 64, num_classes=CLASSES)  # half of the queue stays empty
    queue.enqueue(length * unit(32), torch.arange(32) % CLASSES)
    return queue


def cosines(length):
    return length * (torch.rand(ROWS, CLASSES) * 2 - 1)


# a loss and its arguments: all of length 1, or one of them with another length
NEEDS_COSINES = {
    "agcl": lambda: AGCLLoss(COUNTS),
    "gcl": lambda: GCLLoss(COUNTS),
    "ldam": lambda: LDAMLoss(COUNTS),
    "compat agcl": lambda: compat.AGCL(COUNTS),
    "compat agcl, focal": lambda: compat.AGCL(COUNTS, train_cls=True),
    "compat ldam": lambda: compat.LDAMLoss(COUNTS),
}


def proco(**options):
    loss = ProCoLoss(CLASSES, WIDTH, **options)
    loss.update(unit(30), torch.arange(30) % CLASSES)
    return loss


def call_queue_loss(loss, query=1.0, key=1.0, queue=1.0):
    loss(query * unit(ROWS), key * unit(ROWS), LABELS, queue_of(queue))


def call_pbsd(loss, pooled=1.0, cropped=1.0, key=1.0, queue=1.0):
    loss(pooled * unit(ROWS, 2), cropped * unit(ROWS, 2), key * unit(ROWS), queue_of(queue))


def call_published_dscl(loss, features=1.0, queue=1.0):
    rows = torch.cat([features * unit(2 * ROWS), queue * unit(20)])
    loss(rows, torch.arange(len(rows)) % CLASSES)


def call_published_pbsd(loss, roi_features=1.0, small_qs=1.0, k=1.0, queue=1.0):
    loss([roi_features * unit(ROWS)], [small_qs * unit(ROWS)], k * unit(ROWS), queue * unit(20).T)


NEEDS_LENGTH_1 = {
    "proco, forward": (proco, lambda loss, features=1.0: loss(features * unit(ROWS), LABELS), ["features"]),
    "proco, update": (proco, lambda loss, features=1.0: loss.update(features * unit(ROWS), LABELS), ["features"]),
    "proco, logits": (proco, lambda loss, features=1.0: loss.logits(features * unit(ROWS)), ["features"]),
    "supcon": (SupConQueueLoss, call_queue_loss, ["query", "key", "queue"]),
    "dscl": (DSCLLoss, call_queue_loss, ["query", "key", "queue"]),
    "pbsd": (PBSDLoss, call_pbsd, ["pooled", "cropped", "key", "queue"]),
    "compat dscl": (lambda: compat.DSCLLoss(K=20), call_published_dscl, ["features", "queue"]),
    "compat pbsd": (compat.PBSDLoss, call_published_pbsd, ["roi_features", "small_qs", "k", "queue"]),
    "compat proco": (
        lambda: compat.ProCoLoss(WIDTH, num_classes=CLASSES),
        lambda loss, features=1.0: loss(features * unit(ROWS), LABELS),
        ["features"],
    ),
}


@pytest.fixture(autouse=True)
def only_expected_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("name", NEEDS_COSINES)
def test_plain_logits_are_noticed_once(name):
    loss = NEEDS_COSINES[name]()
    for _ in range(5):
        loss(cosines(1.0), LABELS)
    message = r"(cosine|x) has a value of size [23].*ltfast\.models\.CosineClassifier"
    with pytest.warns(UserWarning, match=message) as caught:
        repeat(200, lambda: loss(cosines(3.0), LABELS))
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_one_value_is_enough_and_a_late_one_too():
    loss, cosine = AGCLLoss(COUNTS), cosines(1.0)
    for _ in range(100):
        loss(cosine, LABELS)
    cosine[7, 1] = -1.2
    with pytest.warns(UserWarning, match=r"value of size 1\.2"):
        repeat(64, lambda: loss(cosine, LABELS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_rounding_is_no_logit(dtype):
    head, loss = CosineClassifier(WIDTH, CLASSES), AGCLLoss(COUNTS)
    loss(head(10 * torch.randn(ROWS, WIDTH)).to(dtype), LABELS)
    loss(torch.full((ROWS, CLASSES), 1 + torch.finfo(dtype).eps, dtype=dtype), LABELS)
    with torch.autocast("cpu", torch.bfloat16):
        loss(head(head.weight.detach().repeat(4, 1)), LABELS)


def test_classes_that_are_left_out_and_overflow_are_no_logits():
    loss = AGCLLoss(COUNTS)
    for value in (-torch.inf, torch.nan, torch.inf):
        cosine = cosines(1.0)
        cosine[2, (int(LABELS[2]) + 1) % CLASSES] = value
        loss(cosine, LABELS)
    with pytest.warns(UserWarning, match="CosineClassifier"):
        repeat(5, lambda: loss(torch.where(torch.rand(ROWS, CLASSES) > 0.9, torch.nan, cosines(8.0)), LABELS))


@pytest.mark.slow
@pytest.mark.parametrize("name", NEEDS_LENGTH_1)
@pytest.mark.parametrize("length", [6.0, 0.5])
def test_other_lengths_are_noticed_once(name, length):
    make, call, inputs = NEEDS_LENGTH_1[name]
    for wrong in inputs:
        loss = make()
        with pytest.warns(UserWarning, match=rf"has a row of length {length:.3g}; expected rows of length 1") as caught:
            repeat(40, partial(call, loss, **{wrong: length}))
        assert len(caught) == 1
        assert wrong in str(caught[0].message) or name == "compat dscl"  # it has the queue in the features


@pytest.mark.parametrize("name", NEEDS_LENGTH_1)
def test_length_1_is_not_noticed(name):
    make, call, _ = NEEDS_LENGTH_1[name]
    loss = make()
    for _ in range(40):
        call(loss)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_has_length_1(dtype):
    loss, contrast, queue = proco(), DSCLLoss(), MemoryQueue(WIDTH, 64, num_classes=CLASSES, dtype=dtype)
    queue.enqueue(unit(32), torch.arange(32) % CLASSES)
    for _ in range(20):
        features = F.normalize(torch.randn(ROWS, WIDTH).to(dtype), dim=1)
        loss(features, LABELS)
        contrast(features, features, LABELS, queue)
        loss(features.float(), LABELS)


def test_an_overflow_is_no_length():
    loss = proco()
    features = unit(ROWS)
    features[3] = torch.inf
    features[4] = torch.nan
    loss.update(features, LABELS)
    loss(features, LABELS)


@pytest.mark.parametrize("call", ["forward", "logits"])
def test_a_loss_without_statistics(call):
    def train(loss):
        features = unit(ROWS).requires_grad_()
        return loss(features, LABELS) if call == "forward" else loss.logits(features)

    loss = ProCoLoss(CLASSES, WIDTH)
    with pytest.warns(UserWarning, match=r"update\(\) was never called.*call update\(features, labels\)") as caught:
        repeat(20, lambda: train(loss))
    assert len(caught) == 1
    for loss in (ProCoLoss(CLASSES, WIDTH), ProCoLoss(CLASSES, WIDTH).eval()):
        loss(unit(ROWS), LABELS)  # without gradient, nothing is trained
        if loss.training:
            loss.update(unit(ROWS), LABELS)
        train(loss)
        loss.start_epoch()
        train(loss)


def test_statistics_of_a_checkpoint_are_statistics():
    before, after = proco(), ProCoLoss(CLASSES, WIDTH)
    after.load_state_dict(before.state_dict())
    after(unit(ROWS).requires_grad_(), LABELS)


def test_the_largest_concentration_of_every_class():
    loss = ProCoLoss(CLASSES, WIDTH)
    same = unit(CLASSES)[LABELS]  # one feature per class
    loss.update(same, LABELS)
    with pytest.warns(UserWarning, match=r"every class has the largest concentration") as caught:
        repeat(20, lambda: loss(same.clone().requires_grad_(), LABELS))
    assert len(caught) == 1
    loss = ProCoLoss(CLASSES, WIDTH)
    loss.update(same[:CLASSES], LABELS[:CLASSES])  # the mean of a single image per class has length 1
    loss(same.clone().requires_grad_(), LABELS)


def test_compilers_and_transforms_are_left_alone():
    watch = Watch()
    assert watch.due(torch.ones(2))
    torch.compile(watch.due, backend="eager", fullgraph=True)(torch.ones(2))
    assert watch.calls == 1
    torch.func.vmap(lambda x: (x, watch.due(x))[0])(torch.ones(2))
    with FakeTensorMode():
        assert not watch.due(torch.ones(2))
    loss = AGCLLoss(COUNTS)
    step = torch.compile(loss, backend="aot_eager", fullgraph=True)
    for _ in range(3):
        step(cosines(5.0), LABELS)
    assert loss.watch.calls == 0


def test_no_gpu_is_waited_for(monkeypatch):
    on_gpu = SimpleNamespace(is_cuda=True)
    assert not any(Watch().due(on_gpu) for _ in range(3))
    monkeypatch.setattr(checks, "CHECK_VALUES", True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert not Watch().due(on_gpu)
    watch = Watch()
    assert all(watch.due(torch.ones(1)) for _ in range(9))  # on every call


def test_a_loss_that_is_copied_or_saved_keeps_its_watch():
    loss = nn.Sequential(AGCLLoss(COUNTS))
    pickle.loads(pickle.dumps(loss))[0](cosines(1.0), LABELS)
    assert loss.state_dict() == {}


def test_a_look_is_rare_and_cheap():
    loss, cosine = AGCLLoss(COUNTS), torch.rand(256, 10)
    looks = [loss.watch.due(cosine) for _ in range(1024)]
    assert sum(looks) == 7 + 1024 // 64 - 1
    watch = Watch()
    for _ in range(64):
        watch.due(cosine)

    def steps():
        start = time.perf_counter()
        for _ in range(640):
            if watch.due(cosine):
                watch.cosines("AGCLLoss", "cosine", cosine)
        return (time.perf_counter() - start) / 640

    assert min(steps() for _ in range(5)) < 1e-5  # 1 us on an idle machine
