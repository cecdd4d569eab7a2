from typing import Any, Literal

import torch
from torch import Tensor, nn

from ltfast.errors import SettingError
from ltfast.models.classifier import ImageClassifier
from ltfast.models.prompts import PromptedTransformer, PromptPool
from ltfast.models.transformer_blocks import check_blocks


class PromptedClassifier(nn.Module):
    """A vision transformer with shared and group prompts, and a cosine classifier.

    Dong et al., "LPT: Long-tailed Prompt Tuning for Image Classification", ICLR 2023. `forward` uses only the shared
    prompts. `grouped` adds to the last blocks the group prompts whose keys are closest to the features of `query`.

    Args:
        backbone, num_classes, in_chans, image_size, pretrained: see `ImageClassifier`; for the supported backbones see
            `PromptedTransformer`.
        global_pool: "token" uses the class token as feature, "avg" the mean of the patch tokens; None keeps timm's
            default.
        standardise: whether to apply BatchNorm without weights before keys and classifier, as in linear probing of
            masked autoencoders (He et al., CVPR 2022); batches must then have at least 2 images. The features of masked
            autoencoders share one large direction, which would otherwise dominate the cosine.
        length: number of shared prompts per block.
        pool_size, group_length, group_blocks, matches: see `PromptPool`. None for `group_blocks` means half of the
            blocks.

    Raises:
        ValueError: see `ImageClassifier`, `PromptedTransformer` and `PromptPool`.
    """

    def __init__(
        self,
        backbone: str,
        num_classes: int,
        *,
        length: int = 10,
        pool_size: int = 20,
        group_length: int = 10,
        group_blocks: int | None = None,
        matches: int = 2,
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
        if global_pool is not None:
            check_blocks(vit)
            vit.reset_classifier(0, global_pool)
        self.transformer = PromptedTransformer(vit, length)
        depth = len(vit.blocks)
        blocks = max(depth // 2, 1) if group_blocks is None else group_blocks
        if not 1 <= blocks <= depth:
            raise SettingError("group_blocks", f"1 to {depth}, the number of blocks", blocks)
        self.pool = PromptPool(vit, size=pool_size, length=group_length, blocks=blocks, matches=matches)
        self.head = whole.head
        # for the features without group prompts, which are also the queries, and for those with group prompts
        self.norm, self.group_norm = (
            nn.BatchNorm1d(vit.num_features, affine=False) if standardise else nn.Identity() for _ in range(2)
        )
        self._first = len(vit.blocks) - blocks  # first block with group prompts

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, in_chans, image_size, image_size) -> cosines (B, C), with only the shared prompts."""
        return self.head(self.query(images))

    def query(self, images: Tensor) -> Tensor:
        """The features (B, D) with only the shared prompts, which are matched with the keys."""
        return self.norm(self.transformer(images))

    def grouped(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the cosines with shared and group prompts.

        Returns:
            The cosines (B, C), and the indices and cosines of `grouped_features`.
        """
        features, indices, cosines = self.grouped_features(images)
        return self.head(features), indices, cosines

    def grouped_features(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the features with shared and group prompts.

        The blocks before the group prompts run once, for both the query and the features. Only the pool receives
        gradients.

        Returns:
            The features (B, D), which are the input of `head`; the indices of the keys that each image matches, (B, k);
            and the cosines of these keys, (B, k).
        """
        with torch.no_grad():
            tokens, ropes = self.transformer.embed(images)
            below = self.transformer.run(tokens, 0, self._first, ropes=ropes)
            query = self.norm(self.transformer.features(self.transformer.run(below, self._first, ropes=ropes)))
        indices, cosines = self.pool.match(query)
        tokens = self.transformer.run(below, self._first, group=self.pool.select(indices), ropes=ropes)
        return self.group_norm(self.transformer.features(tokens)), indices, cosines
