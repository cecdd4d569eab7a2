"""A timm backbone with a linear or a cosine classifier."""

from difflib import get_close_matches
from typing import Any, Literal

import timm
import torch
from timm.layers import PatchEmbed
from torch import Tensor, nn

from ltfast.errors import InputError
from ltfast.models.cosine_classifier import CosineClassifier
from ltfast.models.weights import check_weights


def default_backbone(image_size: int) -> str:
    """The backbone commonly used for images of this height and width in pixels."""
    if image_size <= 16:
        return "digits_convnet"
    return "resnet32_cifar" if image_size <= 64 else "resnet50"


class ImageClassifier(nn.Module):
    """A timm backbone without its head, followed by a linear or a cosine classifier.

    Args:
        backbone: a name from `timm.list_models()`, which includes the networks of this package.
        num_classes: number of classes C.
        head: `"linear"` (logits) or `"cosine"` (cosines in [-1, 1], for losses that apply a scale).
        in_chans: channels of the images.
        image_size: height and width of the images in pixels, for backbones with a fixed input size.
        pretrained: whether to load timm's pretrained weights into the backbone.

    Shapes: images (B, in_chans, image_size, image_size) -> class scores (B, C).

    Raises:
        ValueError: the backbone or head is unknown, pretrained weights do not exist or are unavailable, or the backbone
            does not support the image size: it is below 1, too small, or not a multiple of the patch size.
    """

    def __init__(
        self,
        backbone: str,
        num_classes: int,
        *,
        head: Literal["linear", "cosine"] = "linear",
        in_chans: int = 3,
        image_size: int = 224,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        if head not in ("linear", "cosine"):
            raise ValueError(f"head must be 'linear' or 'cosine', got {head!r}")
        self.backbone, width = make_backbone(backbone, in_chans=in_chans, image_size=image_size, pretrained=pretrained)
        classifier = CosineClassifier if head == "cosine" else nn.Linear
        self.head = classifier(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """The features (B, D), which are the input of `head`."""
        return self.backbone(images)


def make_backbone(
    backbone: str, *, in_chans: int = 3, image_size: int = 224, pretrained: bool = False, **options: Any
) -> tuple[nn.Module, int]:
    """Create a timm model without its head, in training mode.

    Args:
        backbone, in_chans, image_size, pretrained: see `ImageClassifier`.
        options: further arguments of the model (drop_path_rate, ...).

    Returns:
        The model, and the width of its features.

    Raises:
        ValueError: see `ImageClassifier`; or the model does not accept the options.
    """
    if not timm.is_model(backbone.split(".")[0]):
        near = get_close_matches(backbone, timm.list_models(), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else "; see timm.list_models() for the names"
        raise InputError(f"backbone {backbone!r} is not known to timm{hint}")
    if image_size < 1:
        raise InputError(f"image_size must be at least 1, got {image_size}")
    config = timm.get_pretrained_cfg(backbone, allow_unregistered=True)
    if config is not None and config.fixed_input_size:  # a ViT's position embedding depends on the image size
        options["img_size"] = image_size
    if pretrained and config is not None:
        check_weights(backbone, config)
    try:
        model = timm.create_model(backbone, pretrained=pretrained, num_classes=0, in_chans=in_chans, **options)
        _check_patches(model, image_size)
        # a forward pass gives the width of the features, and fails if the image size is not supported
        with torch.no_grad():
            width = model.eval()(torch.zeros(1, in_chans, image_size, image_size)).shape[-1]
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # timm and its models may raise any exception
        what = f"backbone {backbone!r} cannot be created for {image_size} px images"
        raise InputError(f"{what}{' with pretrained weights' if pretrained else ''}: {error}") from error
    return model.train(), width


def _check_patches(backbone: nn.Module, image_size: int) -> None:
    """Check that the image size is a multiple of the patch size: timm silently drops the remaining pixels."""
    patches = getattr(backbone, "patch_embed", None)
    if isinstance(patches, PatchEmbed) and not patches.dynamic_img_pad:
        size = max(patches.patch_size)
        if image_size % size:
            raise InputError(f"image_size must be a multiple of the patch size {size}, got {image_size}")
