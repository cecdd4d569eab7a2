from typing import Any, Literal

import torch
from torch import Tensor, nn

from ltfast.errors import SettingError
from ltfast.models.classifier import ImageClassifier
from ltfast.models.prompts import PromptedTransformer, PromptPool, check_blocks


class PromptedClassifier(nn.Module):
    """A vision transformer with shared and group prompts, and a cosine classifier.

    Dong et al., "LPT: Long-tailed Prompt Tuning for Image Classification", ICLR 2023. `forward` has the shared prompts
    alone; `grouped` adds to the last blocks those group prompts whose keys are nearest to what `forward` sees.

    Args:
        backbone, num_classes, in_chans, image_size, pretrained: see `ImageClassifier`; which: `PromptedTransformer`.
        global_pool: features are the class token ("token") or the mean of the patches' ("avg"); None: as timm has it.
        standardise: BatchNorm without weights (so batches of at least 2) before keys and classifier, as masked
            autoencoders are probed (He et al., CVPR 2022): else the large direction that their features share is all
            that a cosine sees.
        length: shared prompts of a block.
        pool_size, group_length, group_blocks, matches: see `PromptPool`.

    Raises:
        ValueError: as `ImageClassifier`, `PromptedTransformer` and `PromptPool`.
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
            raise SettingError("group_blocks", f"1 to {depth}, the backbone's blocks", blocks)
        self.pool = PromptPool(vit, size=pool_size, length=group_length, blocks=blocks, matches=matches)
        self.head = whole.head
        # of the features without group prompts, which are also the queries; and of those with them
        self.norm, self.group_norm = (
            nn.BatchNorm1d(vit.num_features, affine=False) if standardise else nn.Identity() for _ in range(2)
        )
        self._first = len(vit.blocks) - blocks  # with group prompts

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, in_chans, image_size, image_size) -> cosines (B, C), with the shared prompts alone."""
        return self.head(self.query(images))

    def query(self, images: Tensor) -> Tensor:
        """The features that choose keys, with the shared prompts alone: (B, D)."""
        return self.norm(self.transformer(images))

    def grouped(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Cosines (B, C) with group prompts too; the keys that each image matches, (B, k), and their cosines, (B, k).

        Gradients reach the pool and the head, not what comes before: the blocks below the group prompts run once, for
        the query and for the features.
        """
        with torch.no_grad():
            tokens, ropes = self.transformer.embed(images)
            below = self.transformer.run(tokens, 0, self._first, ropes=ropes)
            query = self.norm(self.transformer.features(self.transformer.run(below, self._first, ropes=ropes)))
        indices, cosines = self.pool.match(query)
        tokens = self.transformer.run(below, self._first, group=self.pool.select(indices), ropes=ropes)
        return self.head(self.group_norm(self.transformer.features(tokens))), indices, cosines
