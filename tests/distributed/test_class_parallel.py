"""Classes split over processes: losses, gradients and statistics equal those of one process with the global batch."""

import resource
import time

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from distributed.harness import run_processes
from ltfast.losses import AGCLLoss, ProCoLoss
from ltfast.models import ClassParallelCosineClassifier, CosineClassifier
from ltfast.ops import class_parallel_agcl
from ltfast.ops.core.collectives import class_ranges, gather
from vectors import unit

CLOSE = {"rtol": 1e-10, "atol": 1e-13}
# classes, and options of AGCLLoss; no number of classes is a multiple of the number of processes
SETTINGS = [
    (11, {}),
    (4102, {"gamma_pos": 2.0, "gamma_neg": 1.7, "label_smoothing": 0.6}),
    (9, {"variant": "paper", "gamma_neg": 0.0}),
    (17, {"reduction": "sum", "ignore_index": 0}),
    (7, {"reduction": "none", "noise_mul": 0.0, "ignore_index": 6}),
]


def labels_of(rows, classes):
    """The labels of the first and the last class of each process, and others."""
    ends = torch.tensor([0, classes // 2 - 1, classes // 2, classes - 1])
    return torch.cat([ends, torch.randint(classes, (rows - 4,))])


def train_step(rank, processes, images, labels, weights, settings):
    """For each setting, this process's losses and the gradients of the backbone and of the classifier's weights."""
    results = []
    for weight, (classes, options) in zip(weights, settings, strict=True):
        torch.manual_seed(5 if rank == 0 else 77 + rank)  # the noise is that of the first process
        backbone = nn.Linear(6, 5, dtype=torch.float64)
        parallel = processes > 1
        if parallel:
            backbone = DistributedDataParallel(backbone)
            head = ClassParallelCosineClassifier(5, classes).double()
            head.weight.data.copy_(weight[head.classes.start : head.classes.stop])
        else:
            head = CosineClassifier(5, classes).double()
            head.weight.data.copy_(weight)
        criterion = AGCLLoss(torch.arange(1, classes + 1), class_parallel=parallel, **options)
        own, targets = images.chunk(processes)[rank], (labels % classes).chunk(processes)[rank]
        generator = torch.Generator().manual_seed(3 if rank == 0 else rank)
        loss = criterion(head(backbone(own)), targets, generator=generator)
        # the losses of the rows have different weights
        (loss * torch.arange(1.0, 1 + len(own)) if loss.dim() else loss).mean().backward()
        results.append((loss.detach(), *(p.grad for p in backbone.parameters()), head.weight.grad))
    return results


@pytest.mark.parametrize("processes", [2, 4])
def test_agcl_and_the_classifier(processes):
    """The backbone is wrapped in DistributedDataParallel."""
    batch = 12
    images, labels = torch.randn(batch, 6, dtype=torch.float64), labels_of(batch, 4102)
    weights = [unit(classes, 5) for classes, _ in SETTINGS]
    results = run_processes(train_step, processes, processes, images, labels, weights, SETTINGS)
    for number, (classes, options) in enumerate(SETTINGS):
        torch.manual_seed(5)
        backbone, head = nn.Linear(6, 5, dtype=torch.float64), CosineClassifier(5, classes).double()
        head.weight.data.copy_(weights[number])
        criterion = AGCLLoss(torch.arange(1, classes + 1), **options)
        whole = criterion(head(backbone(images)), labels % classes, generator=torch.Generator().manual_seed(3))
        reduction = options.get("reduction", "mean")
        factor = {"none": torch.arange(1.0, 1 + batch // processes).repeat(processes), "sum": 1 / processes}
        (whole * factor.get(reduction, 1)).mean().backward()
        found = [result[number] for result in results]
        losses = torch.stack([one[0] for one in found])
        joined = losses.flatten() if reduction == "none" else getattr(losses, reduction)()
        torch.testing.assert_close(joined, whole.detach(), **CLOSE)
        for one in found:  # the gradients that DistributedDataParallel has averaged
            for gradient, parameter in zip(one[1:-1], backbone.parameters(), strict=True):
                torch.testing.assert_close(gradient, parameter.grad, **CLOSE)
        torch.testing.assert_close(torch.cat([one[-1] for one in found]), head.weight.grad, **CLOSE)


def contrast(rank, processes, batches, classes, counts):
    """For each batch, the loss, the logits and the gradient of this process's features; and the final statistics."""
    loss = ProCoLoss(classes, 6, class_counts=counts, class_parallel=True)
    results = []
    for step, (features, labels) in enumerate(batches):
        if step in (2, 4):
            loss.start_epoch()
        own, targets = features.chunk(processes)[rank].clone().requires_grad_(), labels.chunk(processes)[rank]
        loss.update(own.detach(), targets)
        if step == 2:  # continues from a checkpoint
            loss.collect()
            state = {name: value.clone() for name, value in loss.state_dict().items()}
            loss = ProCoLoss(classes, 6, class_counts=counts, class_parallel=True)
            loss.load_state_dict(state)
        value = loss(own, targets)
        (gradient,) = torch.autograd.grad(value, own)
        results.append((value.detach(), gradient / processes, loss.logits(own.detach())))
    loss.collect()
    return results, dict(loss.state_dict()), sorted(name for name, _ in loss.named_buffers())


@pytest.mark.parametrize("processes", [2, 4])
def test_proco(processes):
    classes = 13
    batches = [(unit(12, 6), labels_of(12, classes)) for _ in range(5)]
    whole, state, _ = contrast(0, 1, batches, classes, list(range(1, classes + 1)))
    results = run_processes(contrast, processes, processes, batches, classes, list(range(1, classes + 1)))
    for step, (value, gradient, logits) in enumerate(whole):
        found = [result[0][step] for result in results]
        torch.testing.assert_close(sum(one[0] for one in found) / processes, value, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(torch.cat([one[1] for one in found]), gradient, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(torch.cat([one[2] for one in found], dim=1), logits, rtol=1e-6, atol=1e-6)
    for _, its_state, buffers in results:
        assert buffers == []  # DistributedDataParallel would broadcast buffers
        assert its_state.keys() == state.keys()
        for name, value in state.items():
            torch.testing.assert_close(its_state[name], value, rtol=1e-6, atol=1e-6, msg=name)


def many(rank, processes, classes, rows, width):
    """The losses of AGCL and ProCo for a very large number of classes; one process returns the whole loss."""
    torch.manual_seed(1)
    features, labels = unit(rows, width), labels_of(rows, classes)
    own, targets = features.chunk(processes)[rank].clone().requires_grad_(), labels.chunk(processes)[rank]
    begun = time.monotonic()
    shares = class_ranges(classes)
    part = shares[rank]
    weight = torch.sin(torch.arange(part.start, part.stop)[:, None] * torch.arange(1.0, width + 1)).double()
    cosine = gather(own) @ F.normalize(weight).T
    noise = torch.linspace(0, 1, classes)[part.start : part.stop]
    agcl = class_parallel_agcl(cosine, targets, classes, noise, generator=torch.Generator().manual_seed(rank))
    proco = ProCoLoss(classes, width, class_parallel=True)
    proco.update(own.detach(), targets)
    value = proco(own, targets)
    (gradient,) = torch.autograd.grad(agcl + value, own)
    seconds, bytes_held = time.monotonic() - begun, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return agcl.detach(), value.detach(), gradient / processes, seconds, bytes_held


@pytest.mark.slow  # the tests above take the same path with fewer classes
def test_a_million_classes():
    arguments = (1_000_003, 4, 4)
    agcl, proco, gradient, *_ = many(0, 1, *arguments)
    results = run_processes(many, 2, 2, *arguments)
    torch.testing.assert_close((results[0][0] + results[1][0]) / 2, agcl, **CLOSE)
    torch.testing.assert_close((results[0][1] + results[1][1]) / 2, proco, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(torch.cat([one[2] for one in results]), gradient, rtol=1e-6, atol=1e-8)
    print([f"{seconds:.2f} s, {size / 2**20:.0f} MiB" for *_, seconds, size in results])


def misuse(rank, processes):
    """The error messages for unsupported uses."""
    messages = []

    def attempt(function):
        try:
            function()
        except (RuntimeError, ValueError) as error:
            messages.append(str(error))

    head = ClassParallelCosineClassifier(4, 5)
    weight = head.whole_weight()
    assert weight.shape == (5, 4)
    assert weight.unique(dim=0).shape == weight.shape
    assert torch.equal(weight[head.classes.start : head.classes.stop], head.weight)
    state = head.state_dict()
    head.load_state_dict(state)
    other = 1 - rank
    classes = class_ranges(5)[other]
    state["_extra_state"] = {"first": classes.start, "last": classes.stop - 1, "num_classes": 5}
    state["weight"] = weight[classes.start : classes.stop]
    attempt(lambda: head.load_state_dict(state))
    attempt(lambda: ClassParallelCosineClassifier(4, 1))
    attempt(lambda: ProCoLoss(1, 4, class_parallel=True))
    attempt(lambda: ProCoLoss(5, 4, class_parallel=True).state_dict())
    # a label out of range in one process stops all of them
    bad = torch.tensor([0, 7 if rank == 1 else 1])
    attempt(lambda: AGCLLoss([3, 2, 1, 1, 1], class_parallel=True)(head(torch.randn(2, 4)), bad))
    attempt(lambda: ProCoLoss(5, 4, class_parallel=True)(unit(2, 4), bad))
    attempt(lambda: ProCoLoss(5, 4, class_parallel=True).update(unit(2, 4), bad))
    attempt(lambda: class_parallel_agcl(torch.rand(4, 5), bad, 5))
    attempt(lambda: class_parallel_agcl(torch.rand(3, len(head.classes)), bad, 5))
    return messages


def test_what_cannot_be_done_is_said():
    for rank, messages in enumerate(run_processes(misuse, 2, 2)):
        own, other = ("0 to 2 of 5", "3 to 4 of 5")[:: 1 if rank == 0 else -1]
        expected = [
            f"the checkpoint has classes {other}: expected {own}, the classes of this process",
            "num_classes is 1: expected at least 2, a class a process",
            "num_classes is 1: expected at least 2, a class a process",
            "the ProCoLoss is sharded over 2 processes: call its collect() in each of them before state_dict()",
            "target[3] is 7: expected a label in [0, 5)",
            "target[3] is 7: expected a label in [0, 5)",
            "labels[3] is 7: expected a label in [0, 5)",
            f"cosine is for 5 classes: expected {3 - rank}, this process's, {own}",
            "cosine has 3 rows: expected 2 times as many as each process has, those of the joined batch",
        ]
        assert len(messages) == len(expected), messages
        for message, part in zip(messages, expected, strict=True):
            assert part in message
