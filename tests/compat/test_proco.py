"""ProCo's training script calls the loss once per view, and differentiates the mean of both."""

from types import SimpleNamespace

import torch
from torch.nn import functional as F

from ltfast import compat, losses
from ltfast.benchmark.cases import published_proco


def test_the_training_script():
    classes, width = 4, 128
    theirs = published_proco.Baseline(classes, width)
    ours = compat.ProCoLoss(contrast_dim=width, temperature=0.1, num_classes=classes)
    args = SimpleNamespace(world_size=1)
    for epoch in range(3):
        ours._hook_before_epoch(epoch, 3)
        start = ours.start.clone().double()
        theirs.means = [theirs.means[1].double() if epoch else start, start]
        theirs.counts = [theirs.counts[1].double(), torch.zeros(classes, dtype=torch.float64)]
        for _ in range(3):
            labels = torch.arange(12) % 3
            views = [F.normalize(torch.randn(12, width)).requires_grad_() for _ in range(2)]
            logits = [ours(view, labels, args=args) for view in views]
            twins = [view.detach().double().requires_grad_() for view in views]
            expected = []
            for twin in twins:
                theirs.update(twin, labels)
                expected.append(theirs.logits(twin))
            torch.testing.assert_close(torch.stack(logits).double(), torch.stack(expected), rtol=1e-5, atol=1e-5)
            loss, wanted = (sum(F.cross_entropy(x, labels) for x in xs) / 2 for xs in (logits, expected))
            for gradient, other in zip(
                torch.autograd.grad(loss, views), torch.autograd.grad(wanted, twins), strict=True
            ):
                torch.testing.assert_close(gradient.double(), other, rtol=1e-4, atol=1e-6)
    assert torch.equal(ours(views[0]), ours.logits(views[0]))  # without labels, the statistics do not change
    ours.reload_memory()


def test_it_is_the_loss_with_the_authors_arguments():
    theirs = compat.ProCoLoss(24)
    assert (theirs.feature_dim, theirs.temperature, theirs.num_classes) == (24, 1.0, 1000)
    assert isinstance(theirs, losses.ProCoLoss)
