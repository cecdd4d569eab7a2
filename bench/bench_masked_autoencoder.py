"""A ViT-tiny that sees a quarter of the patches, as in masked pre-training, beside the whole encoder on all of them."""

import pytest
import timm
import torch

from ltfast.models import MaskedAutoencoder

IMAGES, SIZE = 8, 224


@pytest.mark.parametrize("implementation", ["ltfast", "all patches"])
def test_encoder(step, device, implementation):
    encoder = timm.create_model("vit_tiny_patch16_224", num_classes=0).to(device)
    model = MaskedAutoencoder(encoder, decoder_dim=192, decoder_depth=1, decoder_heads=3).to(device)
    images = torch.randn(IMAGES, 3, SIZE, SIZE, device=device)
    visible, _ = model.draw(images)

    def visible_patches():
        model.encode(images, visible).sum().backward()

    def all_patches():
        encoder.forward_features(images).sum().backward()

    calls = {"ltfast": visible_patches, "all patches": all_patches}
    parameters = sum(p.numel() for p in encoder.parameters())
    name = f"encoder vit_tiny_patch16_224, {IMAGES} images, mask 0.75, forward and backward"
    step(calls[implementation], group=name, implementation=implementation, moved=8 * parameters)
