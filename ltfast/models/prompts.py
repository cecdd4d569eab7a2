"""Prompts for timm's vision transformers: learned keys and values that a frozen block's tokens attend to.

Dong et al., "LPT: Long-tailed Prompt Tuning for Image Classification", ICLR 2023, equations 1 and 4. Published code
puts prompts among the tokens and drops them after the block: then they have queries, attention and a feed-forward
network that nobody looks at. Here they are keys and values and nothing else; the other tokens get the same.
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F


def prompted_block(block: Any, tokens: Tensor, prompts: Sequence[Tensor], *, queries: int | None = None) -> Tensor:
    """A transformer block whose tokens also attend to prompts.

    Args:
        block: timm's, with pre-normalisation; it is used, not copied.
        tokens: (B, N, D).
        prompts: each (P, D), the same for all images, or (B, P, D); unnormalised, as tokens are.
        queries: only the first so many tokens are wanted, None for all: the others are keys and values alone.

    Returns:
        (B, N, D), or (B, queries, D).
    """
    attention = block.attn
    normed = block.norm1(tokens)
    keys, values = _keys_values(attention, normed)
    for prompt in prompts:
        more = _keys_values(attention, block.norm1(prompt))
        keys, values = (
            torch.cat([extra.expand(len(tokens), -1, -1, -1), own], 2)
            for extra, own in zip(more, (keys, values), strict=True)
        )
    width = attention.num_heads * attention.head_dim
    tokens, normed = tokens[:, :queries], normed[:, :queries]
    query = attention.q_norm(_heads(attention, F.linear(normed, *_part(attention.qkv, 0, width))))
    dropout = attention.attn_drop.p if attention.training else 0.0
    mixed = F.scaled_dot_product_attention(query, keys, values, dropout_p=dropout)
    mixed = attention.norm(mixed.transpose(1, 2).flatten(2))
    attended = attention.proj_drop(attention.proj(mixed))
    tokens = tokens + block.drop_path1(block.ls1(attended))
    return tokens + block.drop_path2(block.ls2(block.mlp(block.norm2(tokens))))


def _keys_values(attention: Any, normed: Tensor) -> tuple[Tensor, Tensor]:
    """Of tokens (B, N, D) or (N, D): two of (B or 1, heads, N, width of a head)."""
    width = attention.num_heads * attention.head_dim
    both = F.linear(normed if normed.dim() == 3 else normed[None], *_part(attention.qkv, width, 3 * width))
    keys, values = both.chunk(2, -1)
    return attention.k_norm(_heads(attention, keys)), _heads(attention, values)


def _part(layer: Any, first: int, last: int) -> tuple[Tensor, Tensor | None]:
    return layer.weight[first:last], None if layer.bias is None else layer.bias[first:last]


def _heads(attention: Any, x: Tensor) -> Tensor:
    return x.unflatten(-1, (attention.num_heads, attention.head_dim)).transpose(1, 2)


class PromptedTransformer(nn.Module):
    """A timm `VisionTransformer` with shared prompts in each block.

    Args:
        backbone: a plain `VisionTransformer` (ViT, DeiT, AugReg, MAE, DINO, CLIP, ...), without its head.
        length: prompts of a block, P.

    Attributes:
        prompts: (L, P, D).

    Shapes: images (B, channels, H, W) -> features (B, D), as the backbone pools them.

    Raises:
        ValueError: a backbone whose blocks prompts cannot join, or a length under 1.
    """

    backbone: Any  # nn.Module's attributes have no types

    def __init__(self, backbone: nn.Module, length: int) -> None:
        super().__init__()
        if length < 1:
            raise ValueError(f"length is {length}: expected at least 1")
        check_blocks(backbone)
        self.backbone = backbone
        self.prompts = _new_prompts(self.backbone, len(self.backbone.blocks), length)

    def tokens(self, images: Tensor) -> Tensor:
        """What enters the first block, (B, N, D)."""
        vit = self.backbone
        return vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(images))))

    def run(self, tokens: Tensor, first: int, last: int | None = None, group: Tensor | None = None) -> Tensor:
        """The blocks from `first` to `last`, not included, None for all that follow.

        Args:
            tokens: (B, N, D).
            first, last: numbers of blocks.
            group: prompts of each image beside the shared ones, (B, number of these blocks, P, D).

        Returns:
            (B, N, D); after the last block only the tokens that the backbone pools.
        """
        blocks = list(self.backbone.blocks)[first:last]
        for i, block in enumerate(blocks):
            end = first + i + 1 == len(self.backbone.blocks)
            prompts = [self.prompts[first + i]] if group is None else [self.prompts[first + i], group[:, i]]
            tokens = prompted_block(block, tokens, prompts, queries=1 if end and self._pools_first() else None)
        return tokens

    def features(self, tokens: Tensor) -> Tensor:
        """Of what leaves the last block: (B, D)."""
        return self.backbone.forward_head(self.backbone.norm(tokens), pre_logits=True)

    def forward(self, images: Tensor) -> Tensor:
        return self.features(self.run(self.tokens(images), 0))

    def _pools_first(self) -> bool:
        return self.backbone.global_pool == "token" and self.backbone.attn_pool is None


class PromptPool(nn.Module):
    """Group prompts, each with a key; an image gets those whose keys are nearest to its query.

    Args:
        backbone: as for `PromptedTransformer`.
        size: of the pool, S.
        length: prompts of a block and key, P.
        blocks: the last so many blocks have group prompts.
        matches: keys that an image matches, k.

    Attributes:
        keys: (S, D).
        prompts: (S, blocks, P, D).

    Raises:
        ValueError: an argument out of its range.
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
            raise ValueError(f"blocks is {blocks}: expected 1 to {depth}, the backbone's")
        self.matches = matches
        self.keys = nn.Parameter(torch.empty(size, backbone.embed_dim).uniform_(-1, 1))
        self.prompts = _new_prompts(backbone, size, blocks, length)

    def match(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Queries (B, D) -> the keys nearest by cosine, (B, k) int64, nearest first; and the cosines, (B, k)."""
        cosines = F.normalize(queries.float(), dim=-1) @ F.normalize(self.keys.float(), dim=-1).T
        values, indices = cosines.topk(self.matches, 1)
        return indices, values

    def select(self, indices: Tensor) -> Tensor:
        """The mean of the prompts that are matched: (B, k) -> (B, blocks, P, D)."""
        return self.prompts[indices].mean(1)


def check_blocks(backbone: Any) -> None:
    """
    Raises:
        ValueError: prompts cannot join the blocks of this backbone.
    """
    name = type(backbone).__name__
    if not isinstance(backbone, VisionTransformer):
        raise ValueError(f"backbone: expected a timm VisionTransformer, for prompts to join its blocks, got {name}")
    for block in backbone.blocks:
        attention = getattr(block, "attn", None)
        if type(block) is not Block or type(attention) is not Attention or getattr(attention, "gate", None) is not None:
            raise ValueError(
                f"backbone: expected plain pre-normalised blocks, for prompts to join them, got "
                f"{type(block).__name__} with {type(attention).__name__} in {name}"
            )


def _new_prompts(backbone: VisionTransformer, *shape: int) -> nn.Parameter:
    """Uniform with the variance of a patch embedding's Xavier initialisation, as visual prompt tuning has it."""
    bound = (6 / (backbone.patch_embed.proj.weight[0].numel() + backbone.embed_dim)) ** 0.5
    return nn.Parameter(torch.empty(*shape, backbone.embed_dim).uniform_(-bound, bound))
