"""``balanced_bce``, forward and backward, with labels and with soft targets."""

import pytest
import torch

import peers
from ltfast.losses import BalancedBCELoss

SHAPES = [(256, 10), (256, 1000), (1024, 8142)]
LARGE = [pytest.param(4096, 16384, marks=pytest.mark.gpu), pytest.param(16384, 32768, marks=pytest.mark.gpu)]


@pytest.mark.parametrize("implementation", ["ltfast", "eager", "torch.compile", "copy"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["labels", "soft"])
@pytest.mark.parametrize(("rows", "classes"), [*SHAPES, *LARGE])
def test_balanced_bce(step, device, rows, classes, kind, dtype, implementation):
    logits = torch.randn(rows, classes, device=device).to(dtype).requires_grad_()
    target = torch.randint(classes, (rows,), device=device)
    if kind == "soft":
        target = torch.softmax(torch.randn(rows, classes, device=device) * 9, 1)
    loss = BalancedBCELoss(torch.linspace(1000, 5, classes).round(), label_smoothing=0.1).to(device)
    bias = loss.bias.to(dtype)
    plain_target = target.to(dtype) if kind == "soft" else target
    gradient = torch.empty_like(logits, requires_grad=False)
    compiled = torch.compile(peers.balanced_bce, fullgraph=True, dynamic=False)
    calls = {
        "ltfast": lambda: loss(logits, target),
        "eager": lambda: peers.balanced_bce(logits, plain_target, bias),
        "torch.compile": lambda: compiled(logits, plain_target, bias),
    }

    def run():
        if implementation == "copy":  # the least that any implementation moves for labels
            gradient.copy_(logits.detach())
        else:
            logits.grad = None
            calls[implementation]().backward()

    moved = 2 * logits.numel() * logits.element_size()
    moved += target.numel() * target.element_size() if kind == "soft" else 0
    name = f"balanced_bce {kind} {rows} x {classes} {str(dtype)[6:]}"
    step(run, group=name, implementation=implementation, moved=moved)
