"""Tests training steps under autocast with a GradScaler, and with checkpointed activations."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

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
from whole_steps.stages import STAGES, first_batches, make_stage, seed

HALVES = [torch.bfloat16, torch.float16]
# The tolerances are relative for the loss and in the Euclidean norm for gradients: BatchNorm divides by the deviation
# of few images. In float16, oneDNN's convolutions err by 10 % on CPUs with AVX512-FP16, by less than 5 % on others.
TOLERANCES = {torch.bfloat16: (2e-2, 0.3), torch.float16: (3e-3, 0.2)}


def gradient_of(stage):
    return torch.cat([p.grad.flatten() for p in stage.trained()])


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("name", STAGES)
def test_steps_in_half_precision_are_near_single_precision(name, dtype):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    outcomes = []
    for half in (False, True):
        stage = make_stage(name)
        seed(0)
        batch = stage.prepare(first_batches(stage, 1)[0])
        with torch.autocast("cpu", dtype, enabled=half):
            loss, logged = stage(batch)
        assert {value.dtype for value in (loss, *logged.values())} == {torch.float32}
        (scaler.scale(loss) if half else loss).backward()
        outcomes.append((loss.detach(), gradient_of(stage) / (scaler.get_scale() if half else 1)))
    (loss, gradient), (half_loss, half_gradient) = outcomes
    of_loss, of_gradient = TOLERANCES[dtype]
    assert abs(half_loss - loss) < of_loss * abs(loss)
    assert (half_gradient - gradient).norm() < of_gradient * gradient.norm()


@pytest.mark.parametrize("name", STAGES)
def test_a_gradient_that_overflows_is_left_out(name):
    """The scaler skips the step. The state changed by the forward pass is finite, and the next step is taken."""
    stage = make_stage(name)
    optimizer = stage.optimizer()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120, backoff_factor=2.0**-112)
    before = [p.detach().clone() for p in stage.trained()]
    for number, batch in enumerate(first_batches(stage, 2)):
        seed(number)
        with torch.autocast("cpu", torch.float16):
            loss, _ = stage(stage.prepare(batch))
        scaler.scale(loss * (2.0**20 if number == 0 else 1)).backward()
        stage.after_backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        stage.after_step()
        moved = [not torch.equal(p, old) for p, old in zip(stage.trained(), before, strict=True)]
        assert any(moved) == (number == 1)
        assert all(value.isfinite().all() for value in stage.state_dict().values() if value.is_floating_point())


@pytest.mark.parametrize("name", ["proco", "dscl contrast"])
def test_features_that_overflow_do_not_stay(name):
    """The features of an image that is too bright for half precision do not enter queue and statistics."""
    stage = make_stage(name)
    if name == "proco":
        module, backbone, projection = stage.branch.loss, stage.network.backbone, stage.branch.projection
    else:
        module, backbone, projection = stage.contrast.losses, stage.contrast.encoder, stage.contrast.projection
    projection.layers[0].weight.data.mul_(1e6)  # above float16's maximum of 65504
    with torch.autocast("cpu", torch.float16):
        loss, _ = stage(first_batches(stage, 1)[0])
        assert not projection(backbone(torch.randn(5, 1, 8, 8))).isfinite().all()
    assert not loss.isfinite()
    assert all(value.isfinite().all() for value in module.state_dict().values())
    projection.layers[0].weight.data.mul_(1e-6)
    if name == "dscl contrast":
        stage.contrast.copy_encoder()
    with torch.autocast("cpu", torch.float16):
        loss, _ = stage(first_batches(stage, 2)[1])
    assert loss.isfinite()


COUNTS = [500, 200, 100, 50, 20, 10, 5]
WIDTH = 8


class OfQueue(nn.Module):
    """A loss on features, with its own queue, keys and pooled patches."""

    def __init__(self, loss):
        super().__init__()
        self.loss, self.queue = loss, MemoryQueue(WIDTH, 20, num_classes=len(COUNTS))
        self.queue.enqueue(F.normalize(torch.randn(15, WIDTH), dim=1), torch.randint(len(COUNTS), (15,)))
        self.key = F.normalize(torch.randn(6, WIDTH), dim=1)

    def forward(self, features, target):
        features = F.normalize(features.float(), dim=1)
        if isinstance(self.loss, PBSDLoss):
            return self.loss(self.key[:, None], features[:, None], self.key, self.queue)
        return self.loss(features, self.key, target, self.queue)


class OfStatistics(nn.Module):
    def __init__(self):
        super().__init__()
        self.loss = ProCoLoss(len(COUNTS), WIDTH, class_counts=COUNTS)
        self.loss.update(F.normalize(torch.randn(30, WIDTH), dim=1), torch.randint(len(COUNTS), (30,)))

    def forward(self, features, target):
        return self.loss(F.normalize(features.float(), dim=1), target)


LOSSES = {
    "agcl": lambda: AGCLLoss(COUNTS),
    "balanced_bce": lambda: BalancedBCELoss(COUNTS, label_smoothing=0.1),
    "logit_adjusted": lambda: LogitAdjustedLoss(COUNTS),
    "compensation": lambda: CompensationLoss(COUNTS, 3),
    "ldam": lambda: LDAMLoss(COUNTS),
    "balanced_softmax": lambda: BalancedSoftmaxLoss(COUNTS),
    "class_balanced": lambda: ClassBalancedLoss(COUNTS),
    "focal": lambda: FocalLoss(COUNTS),
    "gcl": lambda: GCLLoss(COUNTS),
    "lade": lambda: LADELoss(COUNTS),
    "seesaw": lambda: SeesawLoss(COUNTS).eval(),  # a call counts its labels
    "vs": lambda: VSLoss(COUNTS),
    "proco": OfStatistics,
    "supcon": lambda: OfQueue(SupConQueueLoss()),
    "dscl": lambda: OfQueue(DSCLLoss()),
    "pbsd": lambda: OfQueue(PBSDLoss()),
}


def head_and_batch(name):
    width = WIDTH if name in ("proco", "supcon", "dscl", "pbsd") else len(COUNTS)
    head = nn.Sequential(nn.Linear(5, 12), nn.Dropout(0.3), nn.Tanh(), nn.Linear(12, width), nn.Tanh())
    return head, torch.randn(6, 5), torch.randint(len(COUNTS), (6,))


def gradients(call, head, x):
    torch.manual_seed(7)
    head.zero_grad()
    leaf = x.clone().requires_grad_()
    call(leaf).backward()
    return [leaf.grad, *(p.grad.clone() for p in head.parameters())]


@pytest.mark.parametrize("dtype", [None, *HALVES], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_checkpointed_activations_have_the_same_gradients(name, dtype):
    """Tests a head with its loss; noise and dropout are recomputed with the same random numbers."""
    head, x, target = head_and_batch(name)
    loss = LOSSES[name]()

    def run(x):
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            return loss(head(x), target)

    expected = gradients(run, head, x)
    assert all(gradient.isfinite().all() for gradient in expected)
    for reentrant in (False, True):
        found = gradients(lambda x, kind=reentrant: checkpoint(run, x, use_reentrant=kind), head, x)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_losses_in_half_precision_are_near_single_precision(name, dtype):
    head, x, target = head_and_batch(name)
    head.eval()
    loss = LOSSES[name]()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    values, found = [], []
    for half in (False, True):
        torch.manual_seed(3)
        with torch.autocast("cpu", dtype, enabled=half):
            value = loss(head(x), target)
        assert value.dtype == torch.float32
        scale = scaler.scale if half else lambda value: value
        parts = torch.autograd.grad(scale(value), list(head.parameters()))
        assert all(part.isfinite().all() for part in parts)
        found.append(torch.cat([part.flatten() for part in parts]) / (scaler.get_scale() if half else 1))
        values.append(value.detach())
    of_loss, of_gradient = TOLERANCES[dtype]
    assert abs(values[1] - values[0]) < of_loss * max(1, abs(values[0]))
    assert (found[1] - found[0]).norm() < of_gradient * found[0].norm()
