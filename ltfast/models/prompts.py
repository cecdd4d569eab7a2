"""Prompts for timm's vision transformers: learned keys and values to which the tokens of a frozen block attend.

Dong et al., "LPT: Long-tailed Prompt Tuning for Image Classification", ICLR 2023, equations 1 and 4. Published code
concatenates prompts to the tokens and drops them after the block, so it computes queries, attention and feed-forward
outputs of the prompts that are not used. Here prompts only provide keys and values; the result for the other tokens is
the same.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from timm.layers import Attention, AttentionRope, apply_rot_embed_cat
from timm.models.eva import Eva, EvaAttention, EvaBlock
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from ltfast.errors import InputError

JOINABLE = {(Block, Attention), (EvaBlock, EvaAttention), (EvaBlock, AttentionRope)}  # exact types, no subclasses


def prompted_block(
    block: Any, tokens: Tensor, prompts: Sequence[Tensor], *, rope: Tensor | None = None, queries: int | None = None
) -> Tensor:
    """Apply a transformer block whose tokens also attend to prompts.

    Args:
        block: a timm block with pre-normalisation; it is used, not copied.
        tokens: (B, N, D).
        prompts: each (P, D), shared by all images, or (B, P, D); before normalisation, like the tokens.
        rope: rotary embedding of the patches (the last tokens), as timm passes it to the block; prompts have none.
        queries: number of leading tokens to compute, None for all; the other tokens serve only as keys and values.

    Returns:
        (B, N, D), or (B, queries, D).
    """
    attention = block.attn
    normed = block.norm1(tokens)
    keys, values = _keys_values(attention, normed)
    keys = _rotated(attention, keys, rope)
    for prompt in prompts:
        more = _keys_values(attention, block.norm1(prompt))
        keys, values = (
            torch.cat([extra.expand(tokens.shape[0], -1, -1, -1), own], 2)  # torch.export would fix a len()
            for extra, own in zip(more, (keys, values), strict=True)
        )
    tokens, normed = tokens[:, :queries], normed[:, :queries]
    (query,) = _projected(attention, normed, 0, 1)
    query = _rotated(attention, attention.q_norm(query), rope)
    dropout = attention.attn_drop.p if attention.training else 0.0
    grouped = keys.shape[1] < query.shape[1]  # several query heads share one key head
    mixed = _attend(query, keys, values, dropout_p=dropout, enable_gqa=grouped)
    mixed = attention.norm(mixed.transpose(1, 2).flatten(2))
    attended = attention.proj_drop(attention.proj(mixed))
    first_scale, second_scale = _layer_scales(block)
    tokens = tokens + block.drop_path1(first_scale(attended))
    return tokens + block.drop_path2(second_scale(block.mlp(block.norm2(tokens))))


def _attend(query: Tensor, keys: Tensor, values: Tensor, **options: Any) -> Tensor:
    """Scaled dot-product attention. On a CPU, bfloat16 inputs are converted to float32, whose backward pass is faster
    (1.4 times for 197 tokens, 3.6 times for 65)."""
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(query, keys, values, **options)
    with torch.autocast("cpu", enabled=False):
        mixed = F.scaled_dot_product_attention(query.float(), keys.float(), values.float(), **options)
    return mixed.to(query.dtype)


def _keys_values(attention: Any, normed: Tensor) -> tuple[Tensor, Tensor]:
    """The keys and values of tokens (B, N, D) or (N, D), each (B or 1, heads, N, width of a head)."""
    keys, values = _projected(attention, normed if normed.dim() == 3 else normed[None], 1, 3)
    return attention.k_norm(keys), values


def _projected(attention: Any, normed: Tensor, first: int, last: int) -> list[Tensor]:
    """The projections of tokens with indices in [first, last): queries (0), keys (1), values (2), each (B, heads, N,
    width of a head)."""
    width = attention.proj.in_features  # total over the heads
    if attention.qkv is None:
        layers = [attention.q_proj, attention.k_proj, attention.v_proj]
        parts = [layer(normed) for layer in layers[first:last]]
    else:
        bias = attention.qkv.bias
        if getattr(attention, "q_bias", None) is not None:  # Eva stores the bias separately
            bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
        rows = slice(first * width, last * width)
        parts = F.linear(normed, attention.qkv.weight[rows], None if bias is None else bias[rows]).split(width, -1)
    return [part.unflatten(-1, (-1, width // attention.num_heads)).transpose(1, 2) for part in parts]


def _rotated(attention: Any, x: Tensor, rope: Tensor | None) -> Tensor:
    """Apply the rotary embedding to queries or keys (B, heads, N, width) of the first N tokens, patch tokens only."""
    if rope is None or x.shape[2] <= attention.num_prefix_tokens:
        return x
    prefix, half = attention.num_prefix_tokens, getattr(attention, "rotate_half", False)
    turned = apply_rot_embed_cat(x[:, :, prefix:], rope[..., : x.shape[2] - prefix, :], half=half)
    return torch.cat([x[:, :, :prefix], turned.type_as(x)], 2)


def _layer_scales(block: Any) -> list[Callable[[Tensor], Tensor]]:
    """The layer scales after the attention and after the feed-forward network."""
    if isinstance(block, Block):
        return [block.ls1, block.ls2]
    return [nn.Identity() if gamma is None else gamma.mul for gamma in (block.gamma_1, block.gamma_2)]


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
        self.prompts = _new_prompts(self.backbone, len(self.backbone.blocks), length)

    def embed(self, images: Tensor) -> tuple[Tensor, Sequence[Tensor] | None]:
        """The tokens that enter the first block, (B, N, D), and the rotary embedding of the patches for each block, or
        None if the backbone has none."""
        vit = self.backbone
        embedded = vit._pos_embed(vit.patch_embed(images))
        if not isinstance(vit, Eva):
            return vit.norm_pre(vit.patch_drop(embedded)), None
        tokens, rope = embedded  # dropped patches are absent from both
        ropes = rope if rope is None or vit.rope_mixed else [rope] * len(vit.blocks)
        return vit.norm_pre(tokens), ropes

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
        if ropes is None and getattr(self.backbone, "rope", None) is not None:  # tokens would lose their positions
            raise ValueError(f"ropes: expected those of embed() for {type(self.backbone).__name__}, got None")
        blocks = list(self.backbone.blocks)[first:last]
        for i, block in enumerate(blocks):
            end = first + i + 1 == len(self.backbone.blocks)
            prompts = [self.prompts[first + i]] if group is None else [self.prompts[first + i], group[:, i]]
            tokens = prompted_block(
                block,
                tokens,
                prompts,
                rope=None if ropes is None else ropes[first + i],
                queries=self._pooled() if end else None,
            )
        return tokens

    def features(self, tokens: Tensor) -> Tensor:
        """The pooled features (B, D) of the tokens that leave the last block."""
        return self.backbone.forward_head(self.backbone.norm(tokens), pre_logits=True)

    def forward(self, images: Tensor) -> Tensor:
        tokens, ropes = self.embed(images)
        return self.features(self.run(tokens, 0, ropes=ropes))

    def _pooled(self) -> int | None:
        """The number of leading tokens that the backbone pools, None for all."""
        if self.backbone.global_pool != "token":
            return None
        return 1 if getattr(self.backbone, "dist_token", None) is None else 2  # a distilled DeiT averages two tokens


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
        self.prompts = _new_prompts(backbone, size, blocks, length)

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


def check_blocks(backbone: Any) -> None:
    """Check that the blocks of a backbone support prompts.

    Raises:
        ValueError: they do not.
    """
    name = type(backbone).__name__
    if not isinstance(backbone, (VisionTransformer, Eva)):
        raise InputError(
            f"expected a timm VisionTransformer or Eva, whose blocks support prompts, got {name}", name="backbone"
        )
    for block in backbone.blocks:
        attention = getattr(block, "attn", None)
        gated = getattr(attention, "gate", None) is not None
        if gated or (type(block), type(attention)) not in JOINABLE:
            raise InputError(
                f"expected plain pre-normalised blocks, which support prompts, got "
                f"{type(block).__name__} with {'gated ' if gated else ''}{type(attention).__name__} in {name}",
                name="backbone",
            )


def _new_prompts(backbone: Any, *shape: int) -> nn.Parameter:
    """Uniform with the variance of the Xavier initialisation of a patch embedding, as in visual prompt tuning."""
    bound = (6 / (backbone.patch_embed.proj.weight[0].numel() + backbone.embed_dim)) ** 0.5
    return nn.Parameter(torch.empty(*shape, backbone.embed_dim).uniform_(-bound, bound))
