"""The ResNet for 32 x 32 images of He et al. (CVPR 2016, section 4.2), as used in LDAM, BCL and ProCo."""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional as F

default_cfgs = generate_default_cfgs(
    {
        "resnet32_cifar": {
            "input_size": (3, 32, 32),
            "pool_size": (8, 8),
            "num_classes": 10,
            "first_conv": "conv1",
            "classifier": "fc",
        }
    }
)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with the option-A shortcut: spatial subsampling, with zeros for the new channels.

    Shapes: (B, in_channels, H, W) -> (B, channels, H / stride, W / stride), rounded up.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.pad = (channels - in_channels) // 2
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        if self.pad:
            shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + shortcut)


class ResNetCifar(nn.Module):
    """ResNet of depth `6 * blocks + 2`: three stages of `blocks` basic blocks with 16, 32 and 64 channels.

    Args:
        blocks: number of blocks per stage; 5 gives ResNet-32.
        num_classes: width of the linear head; with 0, the output is the 64 pooled features.
        in_chans: channels of the images.

    Shapes: images (B, in_chans, H, W) -> (B, num_classes), or (B, 64) without a head.
    """

    def __init__(self, blocks: int = 5, *, num_classes: int = 10, in_chans: int = 3) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = 64
        self.conv1 = nn.Conv2d(in_chans, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._layer(16, 16, blocks, stride=1)
        self.layer2 = self._layer(16, 32, blocks, stride=2)
        self.layer3 = self._layer(32, 64, blocks, stride=2)
        self.fc: nn.Module = nn.Linear(64, num_classes) if num_classes else nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def _layer(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
        first = BasicBlock(in_channels, channels, stride)
        return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) -> feature maps (B, 64, H / 4, W / 4)."""
        x = F.relu(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Feature maps (B, 64, H, W) -> logits (B, num_classes), or the pooled features (B, 64)."""
        x = x.mean((2, 3))
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


@register_model
def resnet32_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """ResNet-32, with 464,154 parameters for ten classes."""
    return build_model_with_cfg(ResNetCifar, "resnet32_cifar", pretrained, blocks=5, **kwargs)
