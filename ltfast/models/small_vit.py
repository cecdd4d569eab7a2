"""Vision transformers for small images."""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

_SHARED = {"num_classes": 10, "fixed_input_size": True, "first_conv": "patch_embed.proj", "classifier": "head"}
default_cfgs = generate_default_cfgs(
    {
        "vit_digits": {"input_size": (1, 8, 8), **_SHARED},
        "vit_tiny_cifar": {"input_size": (3, 32, 32), **_SHARED},
    }
)


def default_vit(image_size: int) -> str:
    """The default vision transformer for images of this height and width in pixels."""
    if image_size <= 16:
        return "vit_digits"
    return "vit_tiny_cifar" if image_size <= 64 else "vit_base_patch16_224"


def _build(name: str, pretrained: bool, **kwargs: Any) -> VisionTransformer:
    return build_model_with_cfg(
        VisionTransformer,
        name,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},
        **kwargs,
    )


@register_model
def vit_digits(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """A ViT with 2 x 2 patches and 450,000 parameters, for 8 x 8 digits or any multiple of 2 pixels (`img_size`)."""
    return _build("vit_digits", pretrained, **{"patch_size": 2, "embed_dim": 96, "depth": 4, "num_heads": 3, **kwargs})


@register_model
def vit_tiny_cifar(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """ViT-tiny with 4 x 4 patches and 5.4 million parameters, for 32 x 32 images or any multiple of 4 (`img_size`)."""
    sizes = {"patch_size": 4, "embed_dim": 192, "depth": 12, "num_heads": 3}
    return _build("vit_tiny_cifar", pretrained, **{**sizes, **kwargs})
