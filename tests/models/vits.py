"""Small vision transformers of timm's, of every kind that prompts and adapters support."""

from contextlib import contextmanager

import timm
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from torch import nn

VITS = {
    "class token": {},
    "mean": {"global_pool": "avg", "class_token": False},
    "mean with a class token": {"global_pool": "avg"},
    "registers": {"reg_tokens": 2, "no_embed_class": True},
    "norms and scales": {
        "qk_norm": True,
        "scale_attn_norm": True,
        "init_values": 0.1,
        "pre_norm": True,
        "qkv_bias": False,
    },
    "distilled": {"kind": VisionTransformerDistilled},
}
ROPE = {"use_rot_pos_emb": True}
EVAS = {
    "eva": {},
    "eva, class token": {"global_pool": "token"},
    "eva02": {"qkv_fused": False, "swiglu_mlp": True, "scale_mlp": True, "scale_attn_inner": True, **ROPE},
    "eva, no biases": {"qkv_bias": False, "swiglu_mlp": True, "ref_feat_shape": (7, 7), **ROPE},
    "eva, rope and registers": {"class_token": False, "num_reg_tokens": 2, "use_abs_pos_emb": False, **ROPE},
    "eva, rope and patches alone": {"class_token": False, "init_values": 0.1, **ROPE},
    "eva, rope and class token": {"global_pool": "token", "use_fc_norm": True, "no_embed_class": True, **ROPE},
    "eva, rope of halves": {
        "rope_type": "dinov3",
        "rope_rotate_half": True,
        "num_reg_tokens": 4,
        "init_values": 0.1,
        "use_abs_pos_emb": False,
        "global_pool": "token",
        "dynamic_img_size": True,
        **ROPE,
    },
    "eva, rope of each block": {"rope_type": "mixed", "attn_type": "rope", "init_values": 0.1, **ROPE},
    "eva, fewer keys than queries": {
        "rope_type": "mrope",
        "rope_mrope_section": (1, 1, 2),
        "embed_dim": 32,
        "num_heads": 4,
        "attn_type": "rope",
        "qkv_fused": False,
        "num_kv_heads": (4, 2, 2, 1),
        "qk_norm": True,
        "init_values": 0.1,
        "attn_only_layer_scale": True,
        **ROPE,
    },
    "eva, attention pool": {"global_pool": "map", "use_pre_transformer_norm": True, "qk_norm": True, **ROPE},
}
MODELS = {**VITS, **{name: {"kind": Eva, **options} for name, options in EVAS.items()}}


def new(depth=4, kind=timm.models.VisionTransformer, **options):
    torch.manual_seed(torch.seed() % 2**31)
    shape = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "num_heads": 3, "num_classes": 0, "in_chans": 3}
    return kind(depth=depth, **{**shape, **options}).double().eval()


def vit(**options):
    model = new(**options)
    for parameter in model.parameters():  # otherwise biases are zeros, and Eva's tokens attend equally to all others
        nn.init.normal_(parameter, parameter.mean().item(), 0.3)
    return model


@contextmanager
def prefixed(block, number):
    """The first additional tokens have no position in the image."""
    block.attn.num_prefix_tokens = getattr(block.attn, "num_prefix_tokens", 0) + number
    yield
    block.attn.num_prefix_tokens -= number


def among_tokens(backbone, tokens, prompts, first=0, last=None, ropes=None):
    """The published formulation: prompts are concatenated to the tokens, and dropped after each block."""
    for i, own in enumerate(prompts):
        block, count = backbone.blocks[first:last][i], own.shape[-2]
        whole = torch.cat([own.expand(len(tokens), -1, -1), tokens], 1)
        with prefixed(block, count):
            whole = block(whole) if ropes is None else block(whole, rope=ropes[first + i])
        tokens = whole[:, count:]
    assert len(prompts) == len(backbone.blocks[first:last])
    return tokens


def head(backbone, tokens):
    return backbone.forward_head(backbone.norm(tokens), pre_logits=True)
