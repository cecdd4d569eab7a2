"""Adapters trained by two processes equal those trained by one."""

from copy import deepcopy

import timm
import torch
from torch.nn.parallel import DistributedDataParallel

from distributed.harness import run_processes
from ltfast.models import AdaptedTransformer


def trained(rank, processes, adapter, recompute, images, targets):
    """The trained parameters after some steps on this process's share of the images."""
    torch.manual_seed(3)
    shape = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "num_heads": 3, "num_classes": 0, "depth": 3}
    backbone = timm.models.VisionTransformer(**shape)
    model = AdaptedTransformer(backbone, adapter, width=4, blocks=2, recompute=recompute).double()
    for parameter in model.adapters.parameters():
        torch.nn.init.normal_(parameter, parameter.mean().item(), 0.3)
    frozen = deepcopy(backbone.state_dict())
    step = DistributedDataParallel(model) if processes > 1 else model
    optimizer = torch.optim.SGD(model.trained(), 0.1, momentum=0.9)
    for x, y in zip(images, targets, strict=True):
        optimizer.zero_grad()
        (step(x[rank::processes]) - y[rank::processes]).square().mean().backward()
        optimizer.step()
    assert adapter == "bias" or all(torch.equal(value, frozen[name]) for name, value in backbone.state_dict().items())
    return [parameter.detach() for parameter in model.trained()]


def test_two_processes_equal_one():
    images, targets = torch.randn(3, 4, 3, 16, 16).double(), torch.randn(3, 4, 24).double()
    for adapter, recompute in (("adaptformer", True), ("lora", False), ("bias", False)):
        whole = trained(0, 1, adapter, recompute, images, targets)
        one, two = run_processes(trained, 2, 2, adapter, recompute, images, targets)
        assert len(whole) > 0
        for expected, first, second in zip(whole, one, two, strict=True):
            assert torch.equal(first, second)
            torch.testing.assert_close(first, expected, rtol=1e-9, atol=1e-11)
