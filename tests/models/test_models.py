import pytest
import timm
import torch

from ltfast.models import CosineClassifier, ImageClassifier, ProjectionHead, default_backbone


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def test_resnet32_is_the_literatures():
    model = timm.create_model("resnet32_cifar", num_classes=10)
    assert parameters(model) == 464_154
    convolutions = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) + 1 == 32  # with the linear layer
    images = torch.randn(2, 3, 32, 32)
    assert model(images).shape == (2, 10)
    assert model.forward_features(images).shape == (2, 64, 8, 8)
    assert timm.create_model("resnet32_cifar", num_classes=0, in_chans=1)(images[:, :1]).shape == (2, 64)


def test_option_a_shortcut():
    """With a residual branch of zero, a block keeps every second pixel and pads channels with zeros."""
    block = timm.create_model("resnet32_cifar").layer2[0].eval()
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.rand(1, 16, 8, 8)
    y = block(x)
    assert y.shape == (1, 32, 4, 4)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any()
    assert not y[:, 24:].any()


def test_digits_convnet_is_small():
    model = timm.create_model("digits_convnet")
    assert parameters(model) < 70_000
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 10)


def test_our_networks_have_no_pretrained_weights():
    with pytest.raises(ValueError, match=r"resnet32_cifar.*pretrained"):
        ImageClassifier("resnet32_cifar", 10, pretrained=True, image_size=32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cosine_classifier(dtype):
    classifier = CosineClassifier(8, 5)
    features = torch.randn(7, 8)
    expected = torch.cosine_similarity(features[:, None], classifier.weight[None], dim=-1)
    cosine = classifier(features.to(dtype))
    assert cosine.dtype == dtype
    torch.testing.assert_close(cosine.float(), expected, atol=2e-6 if dtype == torch.float32 else 1e-2, rtol=0)
    assert classifier(1e3 * classifier.weight.detach()).diagonal().max() <= 1.0
    assert classifier(torch.zeros(1, 8)).abs().max() == 0  # without direction, but finite


@pytest.mark.parametrize(("name", "sizes"), [("in_features", (0, 3)), ("num_classes", (3, 0))])
def test_cosine_classifier_names_bad_arguments(name, sizes):
    with pytest.raises(ValueError, match=name):
        CosineClassifier(*sizes)
    with pytest.raises(ValueError, match=r"features must have 4 columns, got shape \(2, 3\)"):
        CosineClassifier(4, 3)(torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("backbone", "size", "channels"),
    [
        ("digits_convnet", 8, 1),
        ("resnet18", 32, 1),
        ("mobilenetv3_small_050", 32, 3),  # its head is wider than its features
        ("vit_tiny_patch16_224", 32, 3),  # its input size is fixed at construction
    ],
)
@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_any_timm_backbone(backbone, size, channels, head):
    model = ImageClassifier(backbone, 6, head=head, in_chans=channels, image_size=size)
    assert model.training
    assert model.backbone.training
    scores = model.eval()(torch.randn(2, channels, size, size))
    assert scores.shape == (2, 6)
    assert head == "linear" or scores.abs().max() <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "resnett50"}, "backbone 'resnett50' is not known to timm; did you mean .*resnet50"),
        ({"backbone": "qqqq"}, "backbone 'qqqq' is not known to timm"),
        ({"backbone": "resnet18", "head": "cos"}, "head must be 'linear' or 'cosine', got 'cos'"),
        ({"backbone": "vit_tiny_patch16_224", "image_size": 8}, "backbone 'vit_tiny_patch16_224' .* for 8 px images"),
        (
            {"backbone": "vit_tiny_patch16_224", "image_size": 50},
            "for 50 px images: image_size must be a multiple of the patch size 16, got 50",
        ),
        ({"backbone": "resnet18", "image_size": 0}, "image_size must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ImageClassifier(num_classes=3, **arguments)


def test_default_backbone_follows_the_image_size():
    assert [default_backbone(size) for size in (8, 28, 32, 224)] == [
        "digits_convnet",
        "resnet32_cifar",
        "resnet32_cifar",
        "resnet50",
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_projection_head(dtype):
    head = ProjectionHead(64, 128, hidden_dim=512)
    assert parameters(head) == 64 * 512 + 512 + 2 * 512 + 512 * 128 + 128  # a BatchNorm between two linear layers
    projected = head.to(dtype)(torch.randn(7, 64, dtype=dtype))
    assert projected.shape == (7, 128)
    assert projected.dtype == torch.float32
    torch.testing.assert_close(projected.norm(dim=1), torch.ones(7))


@pytest.mark.parametrize("name", ["in_features", "feature_dim", "hidden_dim"])
def test_projection_head_names_bad_arguments(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        ProjectionHead(**{"in_features": 4, "feature_dim": 4, "hidden_dim": 4, name: 0})
