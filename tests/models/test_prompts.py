import pytest
import timm
import torch
from torch.nn import functional as F

from ltfast.models.prompts import PromptedTransformer, PromptPool, prompted_block

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
}


def vit(depth=4, **options):
    torch.manual_seed(torch.seed() % 2**31)
    shape = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "num_heads": 3, "num_classes": 0, "in_chans": 3}
    return timm.models.VisionTransformer(depth=depth, **shape, **options).double().eval()


def among_tokens(backbone, tokens, prompts, first=0, last=None):
    """The published formulation: prompts among the tokens, dropped after each block."""
    for block, own in zip(backbone.blocks[first:last], prompts, strict=True):
        whole = torch.cat([own.expand(len(tokens), -1, -1), tokens], 1)
        tokens = block(whole)[:, own.shape[-2] :]
    return tokens


def head(backbone, tokens):
    return backbone.forward_head(backbone.norm(tokens), pre_logits=True)


@pytest.mark.parametrize("options", VITS.values(), ids=VITS)
def test_equal_to_prompts_among_the_tokens(options):
    model = PromptedTransformer(vit(**options), 5).double()
    images = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    outputs, gradients = [], []
    for published in (False, True):
        if published:
            tokens = among_tokens(model.backbone, model.tokens(images), model.prompts)
            features = head(model.backbone, tokens)
        else:
            features = model(images)
        weights = torch.linspace(-1, 1, features.numel(), dtype=torch.float64).view_as(features)
        outputs.append(features)
        gradients.append(
            torch.autograd.grad((features * weights).sum(), [model.prompts, *model.backbone.blocks.parameters()])
        )
    torch.testing.assert_close(*outputs, rtol=1e-10, atol=1e-12)
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("options", VITS.values(), ids=VITS)
def test_group_prompts_join_the_shared_ones(options):
    model = PromptedTransformer(vit(**options), 5).double()
    pool = PromptPool(model.backbone, size=6, length=2, blocks=3, matches=2).double()
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    group = pool.select(torch.randint(6, (4, 2)))
    shared = model.run(model.tokens(images), 0, 1)
    ours = model.features(model.run(shared, 1, group=group))
    both = [torch.cat([own.expand(4, -1, -1), group[:, i]], 1) for i, own in enumerate(model.prompts[1:])]
    first = among_tokens(model.backbone, model.tokens(images), model.prompts[:1], last=1)
    theirs = head(model.backbone, among_tokens(model.backbone, first, both, first=1))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    for parameter in (pool.prompts, model.prompts):
        mine, other = (torch.autograd.grad(x.square().sum(), parameter, retain_graph=True)[0] for x in (ours, theirs))
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-11)


def test_matching_is_the_brute_force_search():
    pool = PromptPool(vit(), size=7, length=2, blocks=2, matches=3)
    queries = torch.randn(11, 24)
    indices, cosines = pool.match(queries)
    for query, found, values in zip(queries, indices, cosines, strict=True):
        every = [float(F.cosine_similarity(query, key, dim=0)) for key in pool.keys.detach()]
        assert found.tolist() == sorted(range(7), key=lambda i: -every[i])[:3]
        torch.testing.assert_close(values, torch.tensor(every)[found])
    chosen = pool.select(indices)
    expected = torch.stack([torch.stack([pool.prompts[i] for i in row]).mean(0) for row in indices.tolist()])
    torch.testing.assert_close(chosen, expected)
    assert chosen.shape == (11, 2, 2, 24)


def test_only_the_wanted_tokens_are_computed():
    backbone = vit(depth=1)
    tokens, prompt = torch.randn(2, 17, 24, dtype=torch.float64), torch.randn(3, 24, dtype=torch.float64)
    whole = prompted_block(backbone.blocks[0], tokens, [prompt])
    torch.testing.assert_close(prompted_block(backbone.blocks[0], tokens, [prompt], queries=1), whole[:, :1])
    torch.testing.assert_close(prompted_block(backbone.blocks[0], tokens, []), backbone.blocks[0](tokens))


def test_half_precision_and_autocast():
    model = PromptedTransformer(vit().float(), 5)
    images = torch.randn(2, 3, 16, 16)
    exact = model(images)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(images).float(), exact, rtol=0.05, atol=0.05)
    torch.testing.assert_close(model.bfloat16()(images.bfloat16()).float(), exact, rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    "name", ["resnet18", "swin_tiny_patch4_window7_224", "eva02_tiny_patch14_224", "vit_base_patch16_rpn_224"]
)
def test_backbones_that_prompts_cannot_join_are_named(name):
    backbone = timm.create_model(name, num_classes=0)
    with pytest.raises(ValueError, match="backbone: expected"):
        PromptedTransformer(backbone, 2)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="length is 0"):
        PromptedTransformer(vit(), 0)
    shape = {"size": 4, "length": 2, "blocks": 2, "matches": 2}
    for name, value in {"matches": 5, "length": 0, "blocks": 5}.items():
        with pytest.raises(ValueError, match=f"{name} is {value}"):
            PromptPool(vit(), **{**shape, name: value})
