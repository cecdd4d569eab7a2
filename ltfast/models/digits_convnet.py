"""A small convolutional network for 8 x 8 digits, which trains in seconds on one core."""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

default_cfgs = generate_default_cfgs(
    {
        "digits_convnet": {
            "input_size": (1, 8, 8),
            "pool_size": (2, 2),
            "num_classes": 10,
            "first_conv": "features.0",
            "classifier": "fc",
        }
    }
)


def _block(in_channels: int, channels: int) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    ]


class DigitsConvNet(nn.Module):
    """Four 3 x 3 convolutions (32, 32, 64, 64 channels) with two max poolings, followed by global average pooling.

    Args:
        num_classes: width of the linear head; with 0, the output is the 64 pooled features.
        in_chans: channels of the images.

    Shapes: images (B, in_chans, H, W), H and W at least 4 -> (B, num_classes), or (B, 64) without a head.
    """

    def __init__(self, *, num_classes: int = 10, in_chans: int = 1) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = 64
        self.features = nn.Sequential(
            *_block(in_chans, 32),
            *_block(32, 32),
            nn.MaxPool2d(2),
            *_block(32, 64),
            *_block(64, 64),
            nn.MaxPool2d(2),
        )
        self.fc: nn.Module = nn.Linear(64, num_classes) if num_classes else nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) -> feature maps (B, 64, H / 4, W / 4)."""
        return self.features(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Feature maps (B, 64, H, W) -> logits (B, num_classes), or the pooled features (B, 64)."""
        x = x.mean((2, 3))
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


@register_model
def digits_convnet(pretrained: bool = False, **kwargs: Any) -> DigitsConvNet:
    """The network for 8 x 8 digits, with 66,000 parameters."""
    return build_model_with_cfg(DigitsConvNet, "digits_convnet", pretrained, **kwargs)
