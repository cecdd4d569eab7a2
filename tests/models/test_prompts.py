import pytest
import timm
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from torch import nn
from torch.nn import functional as F

from ltfast.engine import RunSettings
from ltfast.methods import METHODS, BuildContext, settings_of
from ltfast.models import PromptedClassifier
from ltfast.models.prompts import PromptedTransformer, PromptPool
from ltfast.models.transformer_blocks import run_block
from methods.conftest import tiny_bundle
from models.vits import MODELS, ROPE, among_tokens, head, new, vit


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_equal_to_prompts_among_the_tokens(options):
    model = PromptedTransformer(vit(**options), 5).double()
    images = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    outputs, gradients = [], []
    for published in (False, True):
        if published:
            tokens, ropes = model.embed(images)
            tokens = among_tokens(model.backbone, tokens, model.prompts, ropes=ropes)
            features = head(model.backbone, tokens)
        else:
            features = model(images)
        weights = torch.linspace(-1, 1, features.numel(), dtype=torch.float64).view_as(features)
        outputs.append(features)
        learned = list(model.parameters())
        gradients.append(torch.autograd.grad((features * weights).sum(), learned, materialize_grads=True))
    torch.testing.assert_close(*outputs, rtol=1e-10, atol=1e-12)
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_group_prompts_join_the_shared_ones(options):
    model = PromptedTransformer(vit(**options), 5).double()
    pool = PromptPool(model.backbone, size=6, length=2, blocks=3, matches=2).double()
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    group = pool.select(torch.randint(6, (4, 2)))
    tokens, ropes = model.embed(images)
    shared = model.run(tokens, 0, 1, ropes=ropes)
    ours = model.features(model.run(shared, 1, group=group, ropes=ropes))
    both = [torch.cat([own.expand(4, -1, -1), group[:, i]], 1) for i, own in enumerate(model.prompts[1:])]
    first = among_tokens(model.backbone, tokens, model.prompts[:1], last=1, ropes=ropes)
    theirs = head(model.backbone, among_tokens(model.backbone, first, both, first=1, ropes=ropes))
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


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_without_prompts_it_is_the_backbone(options):
    model = PromptedTransformer(vit(**options), 5).double()
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    tokens, ropes = model.embed(images)
    for i, block in enumerate(model.backbone.blocks):
        tokens = run_block(block, tokens, rope=None if ropes is None else ropes[i])
    torch.testing.assert_close(head(model.backbone, tokens), model.backbone(images), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["class token", "eva", "eva, rope of halves", "eva, rope of each block"])
def test_only_the_wanted_tokens_are_computed(name):
    model = PromptedTransformer(vit(**MODELS[name]), 5).double()
    tokens, ropes = model.embed(torch.randn(2, 3, 16, 16, dtype=torch.float64))
    block, rope = model.backbone.blocks[1], None if ropes is None else ropes[1]
    whole = run_block(block, tokens, prompts=[model.prompts[1]], rope=rope)
    for queries in (1, 5, 9):  # before, at and after the first patch token, with and without registers before it
        some = run_block(block, tokens, prompts=[model.prompts[1]], rope=rope, queries=queries)
        torch.testing.assert_close(some, whole[:, :queries])


@pytest.mark.parametrize(
    ("options", "wanted"),
    [({}, 1), ({"kind": VisionTransformerDistilled}, 2), ({"global_pool": "avg"}, 17)]
    + [
        ({"kind": Eva, "global_pool": pool, **ROPE}, wanted)
        for pool, wanted in (("token", 1), ("avg", 17), ("map", 17))
    ],
)
def test_last_block_computes_what_is_pooled(options, wanted):
    model = PromptedTransformer(vit(**options), 5).double()
    tokens, ropes = model.embed(torch.randn(2, 3, 16, 16, dtype=torch.float64))
    assert model.run(tokens, 0, ropes=ropes).shape[1] == wanted


@pytest.mark.parametrize("rope", ["cat", "mixed"])
def test_dropped_patches_take_their_positions_along(rope):
    options = {"kind": Eva, "patch_drop_rate": 0.5, "rope_type": rope, **ROPE}
    model = PromptedTransformer(vit(**options), 5).double().train()
    tokens, ropes = model.embed(torch.randn(3, 3, 16, 16, dtype=torch.float64))
    assert tokens.shape[1] == 1 + 8
    ours, theirs = model.run(tokens, 0, ropes=ropes), among_tokens(model.backbone, tokens, model.prompts, ropes=ropes)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["class token", "eva02", "eva, rope of halves", "eva, fewer keys than queries"])
def test_half_precision_and_autocast(name):
    model = PromptedTransformer(new(**MODELS[name]).float(), 5)  # for weights as small as timm's
    images = torch.randn(2, 3, 16, 16)
    exact = model(images)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(images).float(), exact, rtol=0.05, atol=0.05)
    torch.testing.assert_close(model.bfloat16()(images.bfloat16()).float(), exact, rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("name", "pool"), [("vit_tiny_patch16_dinov3_qkvb", "token"), ("vit_small_patch16_rope_mixed_224", "avg")]
)
def test_classifier_of_an_eva(name, pool):
    model = PromptedClassifier(name, 7, image_size=32, group_blocks=4, global_pool=pool)
    model.double().eval()
    transformer, images = model.transformer, torch.randn(4, 3, 32, 32, dtype=torch.float64)
    nn.init.normal_(transformer.prompts)
    nn.init.normal_(model.pool.prompts)
    scores, indices, cosines = model.grouped(images)
    tokens, ropes = transformer.embed(images)
    query = head(transformer.backbone, among_tokens(transformer.backbone, tokens, transformer.prompts, ropes=ropes))
    torch.testing.assert_close(model(images), model.head(query), rtol=1e-10, atol=1e-12)
    every = F.cosine_similarity(query.float()[:, None], model.pool.keys.float()[None], dim=-1)
    torch.testing.assert_close((indices, cosines), every.topk(2, 1)[::-1])
    below = among_tokens(transformer.backbone, tokens, transformer.prompts[:8], last=8, ropes=ropes)
    group = model.pool.select(indices)
    both = [torch.cat([own.expand(4, -1, -1), group[:, i]], 1) for i, own in enumerate(transformer.prompts[8:])]
    features = head(transformer.backbone, among_tokens(transformer.backbone, below, both, first=8, ropes=ropes))
    torch.testing.assert_close(scores, model.head(features), rtol=1e-10, atol=1e-12)


def test_lpt_trains_on_an_eva():
    settings = settings_of("lpt", {"backbone": "vit_tiny_patch16_dinov3_qkvb", "image_size": 32, "batch_size": 4})
    for stage in METHODS["lpt"].build(settings, tiny_bundle(), BuildContext(RunSettings(seed=3))).stages:
        stage.train()
        loss, _ = stage(next(stage.batches.epoch(0, 0)))
        learned = list(stage.trained())
        assert all(gradient.abs().sum() > 0 for gradient in torch.autograd.grad(loss, learned))


def gated():
    backbone = vit(kind=Eva)
    backbone.blocks[2].attn.gate = nn.Linear(24, 24)
    return backbone


@pytest.mark.parametrize(
    ("backbone", "words"),
    [
        (lambda: timm.create_model("resnet18"), "VisionTransformer or Eva.*got ResNet"),
        (lambda: timm.create_model("swin_tiny_patch4_window7_224"), "got SwinTransformer"),
        (lambda: timm.create_model("beit_base_patch16_224", depth=1), "got Beit"),
        (lambda: timm.create_model("vit_base_patch16_rpn_224", depth=1), "got ResPostBlock with Attention"),
        (lambda: vit(kind=Eva, use_post_norm=True), "got EvaBlockPostNorm with EvaAttention in Eva"),
        (gated, "got EvaBlock with gated EvaAttention in Eva"),
    ],
)
def test_backbones_that_prompts_cannot_join_are_named(backbone, words):
    with pytest.raises(ValueError, match=f"backbone: expected.*{words}"):
        PromptedTransformer(backbone(), 2)


def test_tokens_of_a_rotary_backbone_need_their_ropes():
    model = PromptedTransformer(vit(kind=Eva, **ROPE), 2).double()
    with pytest.raises(ValueError, match="ropes: expected"):
        model.run(model.embed(torch.randn(1, 3, 16, 16, dtype=torch.float64))[0], 0)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="length is 0"):
        PromptedTransformer(vit(), 0)
    shape = {"size": 4, "length": 2, "blocks": 2, "matches": 2}
    for name, value in {"matches": 5, "length": 0, "blocks": 5}.items():
        with pytest.raises(ValueError, match=f"{name} is {value}"):
            PromptPool(vit(), **{**shape, name: value})
