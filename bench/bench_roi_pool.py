"""``patch_roi_pool`` beside torchvision's ``roi_align`` and mean, and its own definition compiled."""

import pytest
import torch
import torchvision

from ltfast.ops import patch_roi_pool
from ltfast.ops.roi_pool import reference


@pytest.mark.parametrize("implementation", ["ltfast", "torchvision", "torch.compile"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_roi_pool(step, device, layout, implementation):
    layouts = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    features = torch.randn(64, 2048, 7, 7, device=device).contiguous(memory_format=layouts[layout]).requires_grad_()
    corner = torch.rand(64, 5, 2, device=device) * 160
    boxes = torch.cat((corner, corner + 64), 2)  # patches of 64 pixels of an image of 224
    incoming = torch.randn(64, 5, 2048, device=device)
    compiled = torch.compile(reference.roi_pool)

    def by_torchvision():
        pooled = torchvision.ops.roi_align(features, list(boxes), 2, spatial_scale=1 / 32)
        return pooled.mean((2, 3)).view(64, 5, 2048)

    calls = {
        "ltfast": lambda: patch_roi_pool(features, boxes, spatial_scale=1 / 32),
        "torchvision": by_torchvision,
        "torch.compile": lambda: compiled(features, boxes, 1 / 32, 2, -1, False),
    }
    call = calls[implementation]
    step(
        lambda: torch.autograd.grad(call(), features, incoming),
        group=f"roi_pool 64 x 2048 x 7 x 7, 5 boxes, {layout} float32, forward + backward",
        implementation=implementation,
        moved=2 * features.numel() * 4 + 2 * incoming.numel() * 4,
    )
