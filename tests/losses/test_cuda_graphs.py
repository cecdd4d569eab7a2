"""Losses are captured in CUDA graphs, forward and backward, and replayed with other inputs. Without a GPU, the same
forward passes run on tensors without data that report a CUDA device: whatever reads a value, which would synchronise
with the GPU and break a capture, fails."""

import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

import ltfast.losses
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
    LinearAGCLLoss,
    LinearBalancedBCELoss,
    LinearCompensationLoss,
    LinearCrossEntropyLoss,
    LinearLogitAdjustedLoss,
    LogitAdjustedLoss,
    MemoryQueue,
    PBSDLoss,
    ProCoBranch,
    ProCoLoss,
    QueueContrast,
    SeesawLoss,
    SupConQueueLoss,
    VSLoss,
)

COUNTS = [500, 200, 100, 50, 20, 10, 5]
CLASSES, WIDTH, ROWS = len(COUNTS), 16, 24


class OfLogits(nn.Module):
    """A step with a loss on logits and labels."""

    shapes = ((ROWS, CLASSES),)

    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def forward(self, labels, logits):
        return self.loss(logits, labels)


class OfSoftTargets(OfLogits):
    shapes = ((ROWS, CLASSES), (ROWS, CLASSES))

    def forward(self, labels, logits, target):
        return self.loss(logits, target.detach().softmax(1))


class OfStatistics(nn.Module):
    """A step of ProCo, which also updates its statistics."""

    shapes = ((ROWS, WIDTH),)

    def __init__(self):
        super().__init__()
        self.loss = ProCoLoss(CLASSES, WIDTH, class_counts=COUNTS)

    def forward(self, labels, features):
        features = F.normalize(features, dim=1)
        self.loss.update(features.detach(), labels)
        return self.loss(features, labels)


class OfQueue(nn.Module):
    """A step of a contrastive loss that enqueues the keys; the queue is full in the third step."""

    shapes = ((ROWS, WIDTH), (ROWS, WIDTH))

    def __init__(self, loss):
        super().__init__()
        self.loss, self.queue = loss, MemoryQueue(WIDTH, 2 * ROWS + 5, num_classes=CLASSES)

    def forward(self, labels, query, key):
        query, key = F.normalize(query, dim=1), F.normalize(key.detach(), dim=1)
        loss = self.loss(query, key, labels, self.queue)
        self.queue.enqueue(key, labels)
        return loss


class OfPatches(OfQueue):
    shapes = ((ROWS, WIDTH), (ROWS, WIDTH), (ROWS, 2, WIDTH), (ROWS, 2, WIDTH))

    def forward(self, labels, query, key, pooled, cropped):
        key, pooled, cropped = (F.normalize(x, dim=-1) for x in (key.detach(), pooled, cropped))
        loss = self.loss(pooled, cropped, key, self.queue) + query.square().mean()
        self.queue.enqueue(key, labels)
        return loss


class OfBranch(nn.Module):
    """A step of ProCo's branch, which updates its statistics itself."""

    shapes = ((ROWS, WIDTH),)

    def __init__(self):
        super().__init__()
        self.loss = ProCoBranch(WIDTH, CLASSES, COUNTS, feature_dim=WIDTH)

    def forward(self, labels, features):
        return self.loss(features, labels)


class OfEncoder(nn.Module):
    """A step of contrastive learning with its momentum encoder; the queue is full in the third step."""

    shapes = ((ROWS, WIDTH), (ROWS, WIDTH))

    def __init__(self):
        super().__init__()
        encoder = nn.Linear(WIDTH, WIDTH)
        self.loss = QueueContrast(encoder, WIDTH, CLASSES, feature_dim=WIDTH, queue_size=2 * ROWS + 5)

    def forward(self, labels, query, key):
        loss = self.loss(query, key, labels)
        self.loss.after_step()
        return loss


class OfLayer(nn.Module):
    """A step of a loss that has the classifier inside."""

    shapes = ((ROWS, WIDTH), (CLASSES, WIDTH))

    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def forward(self, labels, features, weight):
        return self.loss(features, weight, None, labels)


class OfRows(OfLayer):
    """The same with the losses of the rows, whose gradients only the backward pass computes."""

    def forward(self, labels, features, weight):
        return super().forward(labels, features, weight).sum()


class OfLayerAndSoftTargets(OfLayer):
    shapes = (*OfLayer.shapes, (ROWS, CLASSES))

    def forward(self, labels, features, weight, target):
        return self.loss(features, weight, None, target.detach().softmax(1))


STEPS = {
    "balanced_softmax": lambda: OfLogits(BalancedSoftmaxLoss(COUNTS)),
    "class_balanced": lambda: OfLogits(ClassBalancedLoss(COUNTS)),
    "class_balanced focal": lambda: OfLogits(ClassBalancedLoss(COUNTS, loss="focal")),
    "focal": lambda: OfLogits(FocalLoss(COUNTS)),
    "focal soft": lambda: OfSoftTargets(FocalLoss(COUNTS, weight=torch.rand(CLASSES))),
    "gcl": lambda: OfLogits(GCLLoss(COUNTS, noise_mul=0.0)),
    "lade": lambda: OfLogits(LADELoss(COUNTS)),
    "seesaw": lambda: OfLogits(SeesawLoss(COUNTS)),
    "vs": lambda: OfLogits(VSLoss(COUNTS)),
    "agcl": lambda: OfLogits(AGCLLoss(COUNTS, noise_mul=0.0)),
    "balanced_bce": lambda: OfLogits(BalancedBCELoss(COUNTS, label_smoothing=0.1)),
    "balanced_bce soft": lambda: OfSoftTargets(BalancedBCELoss(COUNTS)),
    "logit_adjusted": lambda: OfLogits(LogitAdjustedLoss(COUNTS)),
    "logit_adjusted soft": lambda: OfSoftTargets(LogitAdjustedLoss(COUNTS)),
    "logit_adjusted weighted": lambda: OfLogits(LogitAdjustedLoss(COUNTS, weight=torch.rand(CLASSES))),
    "compensation": lambda: OfLogits(CompensationLoss(COUNTS, 3)),
    "compensation smoothed": lambda: OfLogits(CompensationLoss(COUNTS, 2, label_smoothing=0.1)),
    "ldam": lambda: OfLogits(LDAMLoss(COUNTS, weight=torch.rand(CLASSES))),
    "linear agcl": lambda: OfLayer(LinearAGCLLoss(COUNTS, noise_mul=0.0)),
    "linear logit_adjusted": lambda: OfLayer(LinearLogitAdjustedLoss(COUNTS)),
    "linear compensation": lambda: OfLayer(LinearCompensationLoss(COUNTS, 3)),
    "linear cross_entropy": lambda: OfLayer(LinearCrossEntropyLoss()),
    "linear cross_entropy weighted": lambda: OfLayer(LinearCrossEntropyLoss(torch.rand(CLASSES))),
    "linear cross_entropy, each row": lambda: OfRows(LinearCrossEntropyLoss(reduction="none")),
    "linear cross_entropy soft": lambda: OfLayerAndSoftTargets(LinearCrossEntropyLoss()),
    "linear balanced_bce": lambda: OfLayer(LinearBalancedBCELoss(COUNTS)),
    "proco": OfStatistics,
    "proco branch": OfBranch,
    "queue contrast": OfEncoder,
    "supcon": lambda: OfQueue(SupConQueueLoss()),
    "dscl": lambda: OfQueue(DSCLLoss()),
    "pbsd": lambda: OfPatches(PBSDLoss()),
}


def test_every_loss_is_among_the_steps():
    modules = [module for make in STEPS.values() for module in make().modules()]
    assert {type(module).__name__ for module in modules} >= {
        name for name in ltfast.losses.__all__ if name[0].isupper()
    }


class Step:
    """Forward and backward pass of one of `STEPS`, always in the same memory."""

    def __init__(self, module, device):
        self.module = module
        self.inputs = [torch.zeros(shape, device=device, requires_grad=True) for shape in module.shapes]
        self.labels = torch.zeros(ROWS, dtype=torch.int64, device=device)

    def forward(self):
        return self.module(self.labels, *self.inputs)

    def __call__(self):
        loss = self.forward()
        gradients = torch.autograd.grad(loss, self.inputs, allow_unused=True)
        return loss.detach(), [gradient for gradient in gradients if gradient is not None]

    @torch.no_grad()
    def put(self, labels, inputs):
        self.labels.copy_(labels)
        for place, value in zip(self.inputs, inputs, strict=True):
            place.copy_(value)

    def draw(self, device):
        return torch.randint(CLASSES, (ROWS,), device=device), [torch.randn_like(x) for x in self.inputs]


def capture(step):
    """Capture a graph of the step, and return its outputs, which each replay overwrites."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # kernels compile, and cuBLAS allocates its workspace
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outcome = step()
    return graph, outcome


@pytest.mark.gpu
@pytest.mark.parametrize("name", STEPS)
def test_replayed_steps_are_the_eager_ones(name):
    """The final state matches too: statistics, and a queue that fills and then wraps around."""
    module = STEPS[name]().to("cuda")
    eager, captured = (Step(copy.deepcopy(module), "cuda") for _ in range(2))
    captured.put(*captured.draw("cuda"))
    fresh = copy.deepcopy(captured.module.state_dict())
    graph, outcome = capture(captured)
    captured.module.load_state_dict(fresh)  # in place, in the graph's memory
    for _ in range(4):
        batch = eager.draw("cuda")
        eager.put(*batch)
        captured.put(*batch)
        expected = eager()
        graph.replay()
        torch.testing.assert_close(outcome, expected)
    torch.testing.assert_close(captured.module.state_dict(), eager.module.state_dict())


@pytest.mark.gpu
def test_replayed_noise_is_fresh():
    step = Step(OfLogits(AGCLLoss(COUNTS)).to("cuda"), "cuda")
    step.put(*step.draw("cuda"))
    graph, (loss, _) = capture(step)
    seen = []
    for _ in range(3):
        graph.replay()
        seen.append(loss.item())
    assert len(set(seen)) == 3


@pytest.mark.gpu
@pytest.mark.parametrize("name", STEPS)
def test_no_step_waits_for_the_gpu(name):
    step = Step(STEPS[name]().to("cuda"), "cuda")
    step.put(*step.draw("cuda"))
    step()  # kernels compile
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


# an older PyTorch queries the driver for the device even for a tensor without data
fake_gpu = pytest.mark.skipif(torch.__version__ < (2, 11), reason="needs PyTorch 2.11")


@fake_gpu
@pytest.mark.parametrize("name", STEPS)
def test_no_forward_pass_reads_a_value(name):
    module = STEPS[name]()
    with FakeTensorMode() as mode:
        module._apply(lambda buffer: mode.from_tensor(buffer).to("cuda"))
        loss = Step(module, "cuda").forward()
    assert loss.device.type == "cuda"
    assert loss.shape == ()


@fake_gpu
def test_reading_a_value_is_noticed():
    """The test above relies on this: a queue without `num_classes` must read the labels."""
    module = OfQueue(DSCLLoss())
    module.queue = MemoryQueue(WIDTH, 40)
    with FakeTensorMode() as mode:
        module._apply(lambda buffer: mode.from_tensor(buffer).to("cuda"))
        with pytest.raises(torch._subclasses.fake_tensor.DataDependentOutputException):
            Step(module, "cuda").forward()
