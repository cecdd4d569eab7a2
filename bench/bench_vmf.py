"""``ProCoLoss``: a training step with its statistics; and the op behind it beside a linear classifier's loss."""

import pytest
import torch
from torch.nn import functional as F

import peers
from ltfast.losses import ProCoLoss
from ltfast.ops import vmf_cross_entropy
from proco_baseline import Baseline

LARGE = [pytest.param(2048, 8142, 128, marks=pytest.mark.gpu)]


def unit(rows: int, width: int, device: str) -> torch.Tensor:
    return F.normalize(torch.randn(rows, width, device=device))


@pytest.mark.parametrize("implementation", ["ltfast", "torch.compile", "eager", "published"])
def test_proco_step(step, device, implementation):
    """The closed form's peers update their statistics as ltfast does; the published algorithm as its authors do."""
    rows, classes, width = 256, 1000, 128
    features, labels = unit(rows, width, device).requires_grad_(), torch.randint(classes, (rows,), device=device)
    loss = ProCoLoss(classes, width, class_counts=torch.arange(1, classes + 1)).to(device)
    baseline = Baseline(classes, width)
    compiled = torch.compile(peers.vmf_cross_entropy, fullgraph=True, dynamic=False)

    def run():
        features.grad = None
        if implementation == "published":
            baseline.update(features.detach(), labels)
            value = F.cross_entropy(baseline.logits(features) + loss.log_prior, labels)
        else:
            loss.update(features.detach(), labels)
            closed_form = compiled if implementation == "torch.compile" else peers.vmf_cross_entropy
            value = (
                loss(features, labels)
                if implementation == "ltfast"
                else closed_form(features, labels, loss.directions, loss.kappa, loss.log_prior)
            )
        value.backward()

    if implementation == "published" and device == "cuda":
        pytest.skip("the plain baseline is for the CPU")
    name = f"proco step {rows} x {classes} x {width} float32"
    step(run, group=name, implementation=implementation, moved=4 * width * (2 * rows + 4 * classes))


@pytest.mark.parametrize("implementation", ["ltfast", "torch.compile", "eager", "linear + cross_entropy"])
@pytest.mark.parametrize(("rows", "classes", "width"), [(256, 100, 128), (256, 1000, 128), (1024, 8142, 128), *LARGE])
def test_vmf_cross_entropy(step, device, rows, classes, width, implementation):
    features, directions = unit(rows, width, device).requires_grad_(), unit(classes, width, device)
    kappa, labels = 1000 * torch.rand(classes, device=device), torch.randint(classes, (rows,), device=device)
    log_prior = torch.randn(classes, device=device)
    compiled = torch.compile(peers.vmf_cross_entropy, fullgraph=True, dynamic=False)
    calls = {
        "ltfast": lambda: vmf_cross_entropy(features, labels, directions, kappa, log_prior=log_prior),
        "torch.compile": lambda: compiled(features, labels, directions, kappa, log_prior),
        "eager": lambda: peers.vmf_cross_entropy(features, labels, directions, kappa, log_prior),
        "linear + cross_entropy": lambda: peers.linear_cross_entropy(features, labels, directions, log_prior),
    }

    def run():
        features.grad = None
        calls[implementation]().backward()

    name = f"vmf_cross_entropy {rows} x {classes} x {width} float32"
    step(run, group=name, implementation=implementation, moved=4 * width * (2 * rows + 2 * classes))
