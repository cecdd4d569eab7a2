"""Runs the blocks of timm's vision transformers with prompts and adapters, without a copy of their code or weights.

Prompts are learned keys and values to which the tokens of a block attend; published code concatenates them to the
tokens and drops them after the block, so it computes queries, attention and feed-forward outputs of the prompts that
are not used. Adapters (`ltfast.models.adapters`) change what a layer of the block returns.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import Attention, AttentionRope, GluMlp, SwiGLU, apply_rot_embed_cat
from timm.models.eva import Eva, EvaAttention, EvaBlock
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from ltfast.errors import InputError
from ltfast.models.recompute import recomputed

KNOWN = {(Block, Attention), (EvaBlock, EvaAttention), (EvaBlock, AttentionRope)}  # exact types, no subclasses
PROJECTIONS = ("q", "k", "v")

Layer = Callable[[Tensor], Tensor]
Adapters = Mapping[str, Callable[[Tensor, Layer], Tensor]]  # an adapter takes the input of a layer, and the layer


def check_blocks(backbone: Any) -> None:
    """Check that the blocks of a backbone support prompts and adapters.

    Raises:
        ValueError: they do not.
    """
    name = type(backbone).__name__
    if not isinstance(backbone, (VisionTransformer, Eva)):
        raise InputError(
            f"expected a timm VisionTransformer or Eva, whose blocks support prompts and adapters, got {name}",
            name="backbone",
        )
    for block in backbone.blocks:
        attention = getattr(block, "attn", None)
        gated = getattr(attention, "gate", None) is not None
        if gated or (type(block), type(attention)) not in KNOWN:
            raise InputError(
                f"expected plain pre-normalised blocks, which support prompts and adapters, got "
                f"{type(block).__name__} with {'gated ' if gated else ''}{type(attention).__name__} in {name}",
                name="backbone",
            )


def embed(backbone: Any, images: Tensor) -> tuple[Tensor, Sequence[Tensor] | None]:
    """The tokens that enter the first block, (B, N, D), and the rotary embedding of the patches for each block, or None
    if the backbone has none."""
    embedded = backbone._pos_embed(backbone.patch_embed(images))
    if not isinstance(backbone, Eva):
        return backbone.norm_pre(backbone.patch_drop(embedded)), None
    tokens, rope = embedded  # dropped patches are absent from both
    ropes = rope if rope is None or backbone.rope_mixed else [rope] * len(backbone.blocks)
    return backbone.norm_pre(tokens), ropes


def pooled_tokens(backbone: Any) -> int | None:
    """The number of leading tokens that the backbone pools, None for all."""
    if backbone.global_pool != "token":
        return None
    return 1 if getattr(backbone, "dist_token", None) is None else 2  # a distilled DeiT averages two tokens


def pooled_features(backbone: Any, tokens: Tensor) -> Tensor:
    """The pooled features (B, D) of the tokens that leave the last block."""
    return backbone.forward_head(backbone.norm(tokens), pre_logits=True)


def check_ropes(backbone: Any, ropes: Sequence[Tensor] | None) -> None:
    """Check that the rotary embeddings of `embed` are given if the backbone has them: tokens would otherwise lose their
    positions.

    Raises:
        ValueError: they are missing.
    """
    if ropes is None and getattr(backbone, "rope", None) is not None:
        raise ValueError(f"ropes: expected those of the embedding of {type(backbone).__name__}, got None")


def run_block(
    block: Any,
    tokens: Tensor,
    *,
    prompts: Sequence[Tensor] = (),
    adapters: Adapters | None = None,
    rope: Tensor | None = None,
    queries: int | None = None,
    recompute: bool = False,
) -> Tensor:
    """Apply a transformer block with prompts and adapters.

    Args:
        block: a timm block with pre-normalisation; it is used, not copied.
        tokens: (B, N, D).
        prompts: each (P, D), shared by all images, or (B, P, D); before normalisation, like the tokens.
        adapters: by what they adapt: the layers `norm1`, `q`, `k`, `v`, `proj` and `norm2`, and the linear layers of
            the feed-forward network by their names; `series`, the normalised network; `parallel`, this network and its
            residual connection.
        rope: rotary embedding of the patches, as timm passes it to the block; prefix tokens, prompts and tokens after
            the patches have none.
        queries: number of leading tokens to compute, None for all; the other tokens serve only as keys and values.
        recompute: whether the backward pass computes the activations of the feed-forward network again. They are four
            of ten tensors as large as the tokens that autograd keeps for a frozen block; the first linear layer is a
            sixth of the products of the forward and the backward pass.

    Returns:
        (B, N, D), or (B, queries, D).
    """
    adapters = adapters or {}
    attention = block.attn
    normed = _adapted(adapters, "norm1", tokens, block.norm1)
    keys, values = _keys_values(attention, normed, adapters)
    keys = _rotated(attention, keys, rope)
    for prompt in prompts:
        more = _keys_values(attention, _adapted(adapters, "norm1", prompt, block.norm1), adapters)
        keys, values = (
            torch.cat([extra.expand(tokens.shape[0], -1, -1, -1), own], 2)  # torch.export would fix a len()
            for extra, own in zip(more, (keys, values), strict=True)
        )
    tokens, normed = tokens[:, :queries], normed[:, :queries]
    (query,) = _projected(attention, normed, 0, 1, adapters)
    query = _rotated(attention, attention.q_norm(query), rope)
    dropout = attention.attn_drop.p if attention.training else 0.0
    grouped = keys.shape[1] < query.shape[1]  # several query heads share one key head
    mixed = _attend(query, keys, values, dropout_p=dropout, enable_gqa=grouped)
    mixed = attention.norm(mixed.transpose(1, 2).flatten(2))
    attended = attention.proj_drop(_adapted(adapters, "proj", mixed, attention.proj))
    first_scale, second_scale = _layer_scales(block)
    tokens = tokens + block.drop_path1(first_scale(attended))

    def feed_forward(x: Tensor) -> Tensor:
        return _feed_forward(block.mlp, _adapted(adapters, "norm2", x, block.norm2), adapters)

    def branch(x: Tensor) -> Tensor:
        fed = recomputed(feed_forward, x, random=_drops(block.mlp)) if recompute else feed_forward(x)
        return block.drop_path2(second_scale(fed))

    return _adapted(adapters, "parallel", tokens, lambda x: x + _adapted(adapters, "series", x, branch))


def _adapted(adapters: Adapters, place: str, x: Tensor, layer: Layer) -> Tensor:
    return adapters[place](x, layer) if place in adapters else layer(x)


def _feed_forward(mlp: Any, x: Tensor, adapters: Adapters) -> Tensor:
    """The feed-forward network with adapters of its linear layers."""
    if not any(name in adapters for name, _ in mlp.named_children()):
        return mlp(x)

    def layer(name: str, x: Tensor) -> Tensor:
        return _adapted(adapters, name, x, getattr(mlp, name))

    if isinstance(mlp, SwiGLU):
        hidden = mlp.act(layer("fc1_g", x)) * layer("fc1_x", x)
    elif isinstance(mlp, GluMlp):
        first, second = layer("fc1", x).chunk(2, -1)
        hidden = first * mlp.act(second) if mlp.gate_last else mlp.act(first) * second
    else:
        hidden = mlp.act(layer("fc1", x))
    return mlp.drop2(layer("fc2", mlp.norm(mlp.drop1(hidden))))


def _drops(module: nn.Module) -> bool:
    """Whether a module draws random numbers."""
    return any(isinstance(part, nn.Dropout) and part.training and part.p > 0 for part in module.modules())


def _attend(query: Tensor, keys: Tensor, values: Tensor, **options: Any) -> Tensor:
    """Scaled dot-product attention. On a CPU, bfloat16 inputs are converted to float32, whose backward pass is faster
    (1.4 times for 197 tokens, 3.6 times for 65)."""
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(query, keys, values, **options)
    with torch.autocast("cpu", enabled=False):
        mixed = F.scaled_dot_product_attention(query.float(), keys.float(), values.float(), **options)
    return mixed.to(query.dtype)


def _keys_values(attention: Any, normed: Tensor, adapters: Adapters) -> tuple[Tensor, Tensor]:
    """The keys and values of tokens (B, N, D) or (N, D), each (B or 1, heads, N, width of a head)."""
    keys, values = _projected(attention, normed if normed.dim() == 3 else normed[None], 1, 3, adapters)
    return attention.k_norm(keys), values


def _projected(attention: Any, normed: Tensor, first: int, last: int, adapters: Adapters) -> list[Tensor]:
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
    parts = [
        _adapted(adapters, place, normed, partial(_given, part))
        for place, part in zip(PROJECTIONS[first:last], parts, strict=True)
    ]
    return [part.unflatten(-1, (-1, width // attention.num_heads)).transpose(1, 2) for part in parts]


def _given(output: Tensor, _: Tensor) -> Tensor:
    """A layer whose output has been computed."""
    return output


def _rotated(attention: Any, x: Tensor, rope: Tensor | None) -> Tensor:
    """Apply the rotary embedding to queries or keys (B, heads, N, width) of the first N tokens, patch tokens only."""
    if rope is None or x.shape[2] <= attention.num_prefix_tokens:
        return x
    prefix, half = attention.num_prefix_tokens, getattr(attention, "rotate_half", False)
    patches = x[:, :, prefix : prefix + rope.shape[-2]]
    turned = apply_rot_embed_cat(patches, rope[..., : patches.shape[2], :], half=half)
    return torch.cat([x[:, :, :prefix], turned.type_as(x), x[:, :, prefix + rope.shape[-2] :]], 2)


def _layer_scales(block: Any) -> list[Callable[[Tensor], Tensor]]:
    """The layer scales after the attention and after the feed-forward network."""
    if isinstance(block, Block):
        return [block.ls1, block.ls2]
    return [nn.Identity() if gamma is None else gamma.mul for gamma in (block.gamma_1, block.gamma_2)]
