import pytest
import timm
import torch

from ltfast.models import feature_map


@pytest.mark.parametrize(
    ("name", "size", "side", "options"),
    [
        ("digits_convnet", 8, None, {"in_chans": 3}),
        ("resnet32_cifar", 32, 8, {}),
        ("resnet18", 64, 2, {}),
        ("vit_tiny_patch16_224", 64, 4, {"img_size": 64}),
        ("swin_tiny_patch4_window7_224", 64, 2, {"img_size": 64}),
        ("convnext_atto", 64, 2, {}),
    ],
)
def test_map_and_features(name, size, side, options):
    backbone = timm.create_model(name, num_classes=0, **options).eval()
    images = torch.randn(2, 3, size, size)
    maps, features = feature_map(backbone, images)
    torch.testing.assert_close(features, backbone(images))
    assert maps.shape[:2] == (2, backbone.num_features)
    assert maps.shape[2] == maps.shape[3] == (side or maps.shape[2])
    if name in ("resnet18", "resnet32_cifar", "digits_convnet"):
        torch.testing.assert_close(maps.mean((2, 3)), features)


def test_tokens_lie_in_rows():
    """Tokens are in row-major order: before any attention, a change in the image changes only the token at its
    position."""
    backbone = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=64, depth=0).eval()
    images = torch.zeros(1, 3, 64, 64)
    before, _ = feature_map(backbone, images)
    images[..., 16:32, 48:] = 1  # row 1, column 3
    changed = (feature_map(backbone, images)[0] != before).any(1)[0]
    assert changed.nonzero().tolist() == [[1, 3]]


def test_tokens_that_are_no_square_are_refused():
    backbone = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=(32, 64)).eval()
    with pytest.raises(ValueError, match="the backbone returns 8 patch tokens: expected a square number"):
        feature_map(backbone, torch.zeros(1, 3, 32, 64))
