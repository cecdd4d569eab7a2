import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from ltfast.models import MaskedAutoencoder

DECODER = {"decoder_dim": 16, "decoder_depth": 2, "decoder_heads": 2}
KINDS = {
    "class token": {},
    "registers, position without them": {"reg_tokens": 2, "no_embed_class": True},
    "pooled, norm after": {"class_token": False, "global_pool": "avg"},
    "norm before, layer scale": {"pre_norm": True, "init_values": 0.1},
    "no position": {"pos_embed": "none"},
    "any size": {"dynamic_img_size": True},
}


def encoder(**options):
    size = {"img_size": (12, 8), "patch_size": (4, 2), "in_chans": 2, "embed_dim": 24, "depth": 2, "num_heads": 2}
    return VisionTransformer(**{**size, **options}, num_classes=0)


def autoencoder(mask_ratio=0.75, norm_pixels=True, **options):
    torch.manual_seed(0)
    return MaskedAutoencoder(encoder(**options), mask_ratio=mask_ratio, norm_pixels=norm_pixels, **DECODER)


def patch_of(image, number):
    """Patch `number` of a (2, 12, 8) image with 3 rows of 4 patches of 4 x 2 pixels."""
    row, column = divmod(number, 4)
    return image[:, 4 * row : 4 * row + 4, 2 * column : 2 * column + 2]


def plain_loss(model, images):
    """Computes the loss image by image and patch by patch in the paper's order: all tokens of the decoder are in their
    position."""
    vit = model.encoder
    errors = []
    noise = torch.rand(len(images), 12)
    for image, order in zip(images, noise.argsort(1).tolist(), strict=True):
        masked, visible = order[: model.masked], sorted(order[model.masked :])
        weight, bias = vit.patch_embed.proj.weight.flatten(1), vit.patch_embed.proj.bias
        first = [token[0] for token in (vit.cls_token, vit.reg_token) if token is not None]
        prefix = list(torch.cat(first)) if first else []
        table = None if vit.pos_embed is None else vit.pos_embed[0]
        if table is not None and not vit.no_embed_class:
            prefix = [token + position for token, position in zip(prefix, table, strict=False)]
            table = table[len(prefix) :]
        tokens = list(prefix)
        for number in visible:
            token = weight @ patch_of(image, number).flatten()
            token = token if bias is None else token + bias
            tokens.append(token if table is None else token + table[number])
        x = vit.norm_pre(torch.stack(tokens)[None])
        for block in vit.blocks:
            x = block(x)
        latent = vit.fc_norm(vit.norm(x))[0]
        row = iter(model.embed(latent[len(prefix) :]))
        inner = list(model.embed(latent[: len(prefix)]))
        inner += [(next(row) if n in visible else model.mask_token[0, 0]) + model.positions[n] for n in range(12)]
        decoded = model.pixels(model.decoder(torch.stack(inner)[None])[0])
        for number in masked:
            target = patch_of(image, number).flatten()
            if model.norm_pixels:
                target = (target - target.mean()) / (target.var() + 1e-6).sqrt()
            errors.append((decoded[len(prefix) + number] - target).square().mean())
    return torch.stack(errors).mean()


@pytest.mark.parametrize("norm_pixels", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_the_papers(kind, norm_pixels):
    model = autoencoder(norm_pixels=norm_pixels, **KINDS[kind])
    images = torch.randn(3, 2, 12, 8)
    results = []
    for function in (model, lambda images: plain_loss(model, images)):
        torch.manual_seed(5)
        model.zero_grad()
        loss = function(images)
        loss.backward()
        results.append((loss, [p.grad.clone() for p in model.parameters()]))
    (loss, gradients), (expected, expected_gradients) = results
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("ratio", "masked"), [(0.75, 9), (0.5, 6), (0.1, 1), (0.9, 11)])
def test_exactly_as_many_patches_are_masked(ratio, masked):
    model = autoencoder(ratio)
    images = torch.randn(64, 2, 12, 8)
    seen, hidden = model.draw(images)
    assert (seen.shape, hidden.shape) == ((64, 12 - masked), (64, masked))
    assert torch.equal(torch.cat([seen, hidden], 1).sort(1).values, torch.arange(12).expand(64, 12))
    assert model.encode(images, seen).shape == (64, 1 + 12 - masked, 24)
    assert model.decode(model.encode(images, seen), seen, hidden).shape == (64, masked, 16)
    assert len({tuple(row) for row in hidden.sort(1).values.tolist()}) > 5  # each image has its own
    torch.manual_seed(1)
    first = model.draw(images)
    torch.manual_seed(1)
    assert all(torch.equal(a, b) for a, b in zip(first, model.draw(images), strict=True))


def test_masked_pixels_never_reach_the_encoder():
    model = autoencoder()
    images = torch.randn(2, 2, 12, 8, requires_grad=True)
    visible, masked = model.draw(images)
    latent = model.encode(images, visible)
    with torch.no_grad():
        changed = images.clone()
        for image, numbers in zip(changed, masked.tolist(), strict=True):
            for number in numbers:
                patch_of(image, number).fill_(torch.nan)
        assert torch.equal(model.encode(changed, visible), latent)
    latent.sum().backward()
    for image, seen, hidden in zip(images.grad, visible.tolist(), masked.tolist(), strict=True):
        assert not any(patch_of(image, number).any() for number in hidden)
        assert all(patch_of(image, number).any() for number in seen)


def test_autocast_gives_a_float32_loss():
    model = autoencoder()
    images = torch.randn(4, 2, 12, 8)
    torch.manual_seed(2)
    expected = model(images)
    torch.manual_seed(2)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(images)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0.02, atol=0)


def test_positions_are_fixed_and_what_should_not_decay_is_named():
    model = autoencoder()
    assert model.positions.shape == (12, 16)
    assert "positions" not in dict(model.named_parameters())
    names = {name for name, _ in model.named_parameters()}
    assert {"mask_token", "encoder.pos_embed", "encoder.cls_token"} <= model.no_weight_decay() & names


@pytest.mark.parametrize(("name", "size", "channels"), [("vit_digits", 8, 1), ("vit_tiny_cifar", 32, 3)])
def test_small_transformers(name, size, channels):
    model = timm.create_model(name, num_classes=7)
    assert type(model) is VisionTransformer
    assert model(torch.zeros(1, channels, size, size)).shape == (1, 7)
    other = timm.create_model(name, num_classes=0, in_chans=2, img_size=2 * size)
    loss = MaskedAutoencoder(other, **DECODER)(torch.randn(2, 2, 2 * size, 2 * size))
    assert loss.isfinite()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_ratio": 0.0}, r"mask_ratio: expected a number in \(0, 1\), got 0.0"),
        ({"mask_ratio": 1.0}, r"mask_ratio: expected a number in \(0, 1\), got 1.0"),
        ({"mask_ratio": 0.01}, "mask_ratio: 0.01 masks 0 of 12 patches"),
        ({"mask_ratio": 0.99}, "mask_ratio: 0.99 masks 12 of 12 patches"),
        ({"decoder_dim": 18}, "decoder_dim: expected a multiple of 4 and of the 2 heads, got 18"),
        ({"decoder_heads": 3}, "decoder_dim: expected a multiple of 4 and of the 3 heads, got 16"),
        ({"decoder_heads": 0}, "decoder_heads: expected at least 1, got 0"),
        ({"decoder_depth": 0}, "decoder_depth: expected at least 1, got 0"),
        ({"encoder": encoder(img_size=(13, 8))}, r"encoder: expected an image size that is a multiple of the patch's"),
        (
            {"encoder": encoder(patch_size=1, in_chans=1)},
            "norm_pixels: expected false, since patches have only",
        ),
        ({"encoder": torch.nn.Linear(2, 2)}, "encoder: expected a plain timm VisionTransformer, got Linear"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        MaskedAutoencoder(**{"encoder": encoder(), **DECODER, **options})


def test_other_transformers_are_refused():
    for name in ("deit_tiny_distilled_patch16_224", "vit_tiny_r_s16_p8_224"):
        with pytest.raises(ValueError, match="encoder: expected a plain timm VisionTransformer"):
            MaskedAutoencoder(timm.create_model(name), **DECODER)


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"images: expected shape \(B, 2, 12, 8\), got \(1, 2, 8, 8\)"):
        autoencoder()(torch.zeros(1, 2, 8, 8))
