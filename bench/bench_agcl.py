"""``agcl``, forward and backward, noise included."""

import pytest
import torch

import peers
from ltfast.losses import AGCLLoss

SHAPES = [(256, 10), (256, 1000), (1024, 8142)]
LARGE = [pytest.param(4096, 16384, marks=pytest.mark.gpu), pytest.param(16384, 32768, marks=pytest.mark.gpu)]


@pytest.mark.parametrize("implementation", ["ltfast", "eager", "torch.compile", "copy"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("rows", "classes"), [*SHAPES, *LARGE])
def test_agcl(step, device, rows, classes, dtype, implementation):
    cosine = (torch.rand(rows, classes, device=device) * 2 - 1).to(dtype).requires_grad_()
    target = torch.randint(classes, (rows,), device=device)
    counts = torch.linspace(1000, 5, classes).round()
    loss = AGCLLoss(counts).to(device)
    rarity = (loss.class_noise / loss.class_noise.max()).to(dtype)
    gradient = torch.empty_like(cosine, requires_grad=False)
    compiled = torch.compile(peers.agcl, fullgraph=True, dynamic=False)
    calls = {
        "ltfast": lambda: loss(cosine, target),
        "eager": lambda: peers.agcl(cosine, target, rarity),
        "torch.compile": lambda: compiled(cosine, target, rarity),
    }

    def run():
        if implementation == "copy":  # the least that any implementation moves
            gradient.copy_(cosine.detach())
        else:
            cosine.grad = None
            calls[implementation]().backward()

    name = f"agcl {rows} x {classes} {str(dtype)[6:]}"
    step(run, group=name, implementation=implementation, moved=2 * cosine.numel() * cosine.element_size())
