"""Prompts for timm's vision transformers: learned keys and values to which the tokens of a frozen block attend.

Dong et al., "LPT: Long-tailed Prompt Tuning for Image Classification", ICLR 2023, equations 1 and 4. Published code
concatenates prompts to the tokens and drops them after the block, so it computes queries, attention and feed-forward
outputs of the prompts that are not used. Here prompts only provide keys and values; the result for the other tokens is
the same.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltfast.models.transformer_blocks import (
    check_blocks,
    check_ropes,
    embed,
    pooled_features,
    pooled_tokens,
    run_block,
)


class PromptedTransformer(nn.Module):
    """A timm vision transformer with shared prompts in each block.

    Args:
        backbone: a plain `VisionTransformer` (ViT, DeiT, AugReg, MAE, DINO, CLIP, ...) or an `Eva` (EVA, EVA02, DINOv3,
            the Perception Encoder, ViTs with rotary embeddings, ...), without its head.
        length: number of prompts per block P.

    Attributes:
        prompts: (L, P, D) for L blocks.

    Shapes: images (B, channels, H, W) -> features (B, D), pooled as in the backbone.

    Raises:
        ValueError: the blocks of the backbone do not support prompts, or the length is below 1.
    """

    backbone: Any  # nn.Module's attributes have no types

    def __init__(self, backbone: nn.Module, length: int) -> None:
        super().__init__()
        if length < 1:
            raise ValueError(f"length is {length}: expected at least 1")
        check_blocks(backbone)
        self.backbone = backbone
        self.prompts = new_prompts(self.backbone, len(self.backbone.blocks), length)

    def embed(self, images: Tensor) -> tuple[Tensor, Sequence[Tensor] | None]:
        """The tokens that enter the first block, (B, N, D), and the rotary embedding of the patches for each block, or
        None if the backbone has none."""
        return embed(self.backbone, images)

    def run(
        self,
        tokens: Tensor,
        first: int,
        last: int | None = None,
        group: Tensor | None = None,
        *,
        ropes: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Run the blocks with indices in [first, last).

        Args:
            tokens: (B, N, D).
            first, last: indices of blocks; None for `last` means all blocks from `first`.
            group: additional prompts of each image, (B, number of these blocks, P, D).
            ropes: the rotary embeddings of all blocks from `embed`.

        Returns:
            (B, N, D); after the last block, only the tokens that the backbone pools.

        Raises:
            ValueError: the backbone has rotary embeddings, but `ropes` is None.
        """
        check_ropes(self.backbone, ropes)
        blocks = list(self.backbone.blocks)[first:last]
        for i, block in enumerate(blocks):
            end = first + i + 1 == len(self.backbone.blocks)
            prompts = [self.prompts[first + i]] if group is None else [self.prompts[first + i], group[:, i]]
            tokens = run_block(
                block,
                tokens,
                prompts=prompts,
                rope=None if ropes is None else ropes[first + i],
                queries=pooled_tokens(self.backbone) if end else None,
            )
        return tokens

    def features(self, tokens: Tensor) -> Tensor:
        """The pooled features (B, D) of the tokens that leave the last block."""
        return pooled_features(self.backbone, tokens)

    def forward(self, images: Tensor) -> Tensor:
        tokens, ropes = self.embed(images)
        return self.features(self.run(tokens, 0, ropes=ropes))


class PromptPool(nn.Module):
    """Group prompts with keys; an image uses the prompts whose keys are closest to its query.

    Args:
        backbone: see `PromptedTransformer`.
        size: number of keys S in the pool.
        length: number of prompts P per block and key.
        blocks: number of blocks with group prompts, counted from the last.
        matches: number of keys k that an image matches.

    Attributes:
        keys: (S, D).
        prompts: (S, blocks, P, D).

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(self, backbone: Any, *, size: int, length: int, blocks: int, matches: int) -> None:
        super().__init__()
        check_blocks(backbone)
        depth = len(backbone.blocks)
        if not 1 <= matches <= size:
            raise ValueError(f"matches is {matches}: expected 1 to {size}, the size of the pool")
        if length < 1:
            raise ValueError(f"length is {length}: expected at least 1")
        if not 1 <= blocks <= depth:
            raise ValueError(f"blocks is {blocks}: expected 1 to {depth}, the number of blocks")
        self.matches = matches
        self.keys = nn.Parameter(torch.empty(size, backbone.embed_dim).uniform_(-1, 1))
        self.prompts = new_prompts(backbone, size, blocks, length)

    def match(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Match queries (B, D) with keys: indices of the closest keys by cosine, (B, k) int64, closest first; and the
        cosines, (B, k)."""
        half = nullcontext() if queries.is_meta else torch.autocast(queries.device.type, enabled=False)
        with half:  # autocast would multiply in half precision; the meta device has no autocast
            cosines = F.normalize(queries.float(), dim=-1) @ F.normalize(self.keys.float(), dim=-1).T
        values, indices = cosines.topk(self.matches, 1)
        return indices, values

    def select(self, indices: Tensor) -> Tensor:
        """The mean of the matched prompts: (B, k) -> (B, blocks, P, D)."""
        # The gradient of self.prompts[indices].mean(1) would not be deterministic with several CPU threads.
        return F.embedding_bag(indices, self.prompts.flatten(1), mode="mean").unflatten(1, self.prompts.shape[1:])


def new_prompts(backbone: Any, *shape: int) -> nn.Parameter:
    """Uniform with the variance of the Xavier initialisation of a patch embedding, as in visual prompt tuning."""
    bound = (6 / (backbone.patch_embed.proj.weight[0].numel() + backbone.embed_dim)) ** 0.5
    return nn.Parameter(torch.empty(*shape, backbone.embed_dim).uniform_(-bound, bound))
