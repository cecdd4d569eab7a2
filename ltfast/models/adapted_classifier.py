from typing import Any, Literal

import torch
from torch import Tensor, nn

from ltfast.errors import SettingError
from ltfast.models.adapted_transformer import AdaptedTransformer, Adapter
from ltfast.models.classifier import ImageClassifier
from ltfast.models.transformer_blocks import check_blocks, embed

SCALE = 25.0  # of the authors


class AdaptedClassifier(nn.Module):
    """A frozen vision transformer with adapters, and a cosine classifier with a scale.

    Shi et al., "Long-Tail Learning with Foundation Model: Heavy Fine-Tuning Hurts", ICML 2024. The published code has
    the scale 25.

    Args:
        backbone, num_classes, in_chans, image_size, pretrained: see `ImageClassifier`; for the supported backbones see
            `AdaptedTransformer`.
        adapter: see `AdaptedTransformer`.
        width: its `width`; None means the authors' rule.
        blocks: its `blocks`; None means all blocks.
        scale: the factor of the cosines; "learned" trains it, from 25 on.
        global_pool: "token" uses the class token as feature, "avg" the mean of the patch tokens; None keeps timm's
            default.
        standardise: whether to apply BatchNorm without weights before the classifier; see `PromptedClassifier`.

    Attributes:
        transformer: the `AdaptedTransformer`.
        head: the `CosineClassifier`.

    Shapes: images (B, in_chans, image_size, image_size) -> class scores (B, C), the cosines times the scale.

    Raises:
        ValueError: see `ImageClassifier` and `AdaptedTransformer`.
    """

    def __init__(
        self,
        backbone: str,
        num_classes: int,
        *,
        adapter: Adapter = "adaptformer",
        width: int | None = None,
        blocks: int | None = None,
        scale: float | Literal["learned"] = SCALE,
        in_chans: int = 3,
        image_size: int = 224,
        pretrained: bool = False,
        global_pool: Literal["token", "avg"] | None = None,
        standardise: bool = False,
    ) -> None:
        super().__init__()
        whole = ImageClassifier(
            backbone, num_classes, head="cosine", in_chans=in_chans, image_size=image_size, pretrained=pretrained
        )
        vit: Any = whole.backbone
        check_blocks(vit)
        if global_pool is not None:
            vit.reset_classifier(0, global_pool)
        depth = len(vit.blocks)
        if blocks is not None and not 1 <= blocks <= depth:
            raise SettingError("adapter_blocks", f"1 to {depth}, the number of blocks, or auto", blocks)
        self.transformer = AdaptedTransformer(vit, adapter, width=width, blocks=blocks, num_classes=num_classes)
        self.norm: nn.Module = nn.BatchNorm1d(vit.num_features, affine=False) if standardise else nn.Identity()
        self.head = whole.head
        self._image_shape = (in_chans, image_size, image_size)
        self._scale = SCALE if scale == "learned" else float(scale)
        # the logarithm is trained, so that a step changes any scale by the same share
        self.log_scale = nn.Parameter(torch.tensor(self._scale).log()) if scale == "learned" else None

    @property
    def scale(self) -> float | Tensor:
        """The factor of the cosines: a number, or a scalar tensor if it is trained."""
        return self._scale if self.log_scale is None else self.log_scale.exp()

    @property
    def only_features(self) -> bool:
        """Whether `frozen` returns features, because no block is adapted."""
        return self.transformer.first == len(self.transformer.backbone.blocks)

    def forward(self, images: Tensor) -> Tensor:
        return self.scores(self.features(images))

    def scores(self, features: Tensor) -> Tensor:
        """The class scores (B, C) of features (B, D)."""
        return self.scale * self.head(features)

    def features(self, images: Tensor) -> Tensor:
        """The features (B, D), which are the input of `head`."""
        return self.norm(self.transformer(images))

    @torch.no_grad()
    def frozen(self, images: Tensor) -> Tensor:
        """What training does not change: the tokens (B, N, D) that enter the first adapted block; or, if no block is
        adapted, the features (B, D) before they are standardised."""
        tokens, ropes = self.transformer.below(images)
        return self.transformer.above(tokens, ropes) if self.only_features else tokens

    def features_of_frozen(self, frozen: Tensor) -> Tensor:
        """The features (B, D) of images, from what `frozen` has returned for them."""
        if self.only_features:
            return self.norm(frozen)
        vit, ropes = self.transformer.backbone, None
        if getattr(vit, "rope", None) is not None:  # rotary embeddings depend on the size of the images alone
            with torch.no_grad():
                _, ropes = embed(vit, frozen.new_zeros(1, *self._image_shape))
        return self.norm(self.transformer.above(frozen, ropes))
