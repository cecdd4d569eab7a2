from collections import Counter
from copy import deepcopy
from math import floor, log2
from typing import get_args

import pytest
import timm
import torch
from timm.models.eva import Eva
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel

from ltfast.models import AdaptedTransformer, adapted_transformer
from ltfast.models.adapted_transformer import Adapter, default_width
from ltfast.models.adapters import SSF, AdaptFormer, LoRA, SequentialAdapter
from ltfast.models.transformer_blocks import run_block
from models.vits import MODELS, ROPE, among_tokens, head, new, prefixed, vit

ADAPTERS = get_args(Adapter)
START_UNCHANGED = ("adaptformer", "lora", "lora_mlp", "adapter", "bias", "layer_norm")
CASES = [
    *((name, adapter, 2) for name in ("class token", "eva02") for adapter in ADAPTERS),
    *((name, adapter, None) for name in MODELS for adapter in ("adaptformer", "lora", "ssf", "vpt_shallow")),
]


def adapted(backbone, adapter, **options):
    """With random parameters: otherwise most adapters have no effect."""
    model = AdaptedTransformer(backbone, adapter, width=3, length=5, **options).to(torch.float64)
    for parameter in model.adapters.parameters():
        nn.init.normal_(parameter, parameter.mean().item(), 0.3)
    return model


def some_images(number=3):
    return torch.randn(number, 3, 16, 16, dtype=torch.float64)


def bottleneck(adapter, x):
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, correction=0, keepdim=True)
    normed = (x - mean) / (variance + 1e-5).sqrt() * adapter.norm.weight + adapter.norm.bias
    hidden = (normed @ adapter.down.weight.T + adapter.down.bias).clamp(min=0)
    return hidden @ adapter.up.weight.T + adapter.up.bias


def change(adapter, x, y):
    """The output of an adapted layer with input x and output y, by the formulas of the papers."""
    if isinstance(adapter, LoRA):
        return y + x @ adapter.a @ adapter.b / adapter.b.shape[0]
    assert isinstance(adapter, SSF)
    return adapter.scale * y + adapter.shift


def hooked(model):
    """A copy of the backbone whose own modules apply the adapters, by hooks."""
    backbone = deepcopy(model.backbone)
    for block, adapters in zip(backbone.blocks[model.first :], model.adapters, strict=True):
        hook_block(block, adapters)
    return backbone


def hook_block(block, adapters):
    attention = block.attn
    if getattr(attention, "q_bias", None) is not None:  # or timm does not call the projection, but uses its weight
        bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
        attention.qkv.bias, attention.q_bias = nn.Parameter(bias), None

    def adapt(module, adapter):
        module.register_forward_hook(lambda _, inputs, output: change(adapter, inputs[0], output))

    def adapt_projections(_, inputs, output):
        parts = dict(zip("qkv", output.chunk(3, -1), strict=True))
        return torch.cat(
            [change(adapters[place], *inputs, y) if place in adapters else y for place, y in parts.items()], -1
        )

    tokens = {}
    block.norm2.register_forward_pre_hook(lambda _, inputs: tokens.update(x=inputs[0]))
    if attention.qkv is not None:
        attention.qkv.register_forward_hook(adapt_projections)
    for place, adapter in adapters.items():
        if place in ("norm1", "norm2"):
            adapt(getattr(block, place), adapter)
        elif place == "proj":
            adapt(attention.proj, adapter)
        elif place in ("q", "k", "v"):
            if attention.qkv is None:
                adapt(getattr(attention, f"{place}_proj"), adapter)
        elif place == "parallel":
            block.drop_path2.register_forward_hook(
                lambda _, __, y, own=adapter: y + own.scale * bottleneck(own, tokens["x"])
            )
        elif place == "series":
            block.drop_path2.register_forward_hook(lambda _, __, y, own=adapter: y + bottleneck(own, y))
        else:
            adapt(getattr(block.mlp, place), adapter)


def with_shallow_prompts(model, images):
    tokens, ropes = model.below(images)
    whole = torch.cat([model.prompts[0].expand(len(tokens), -1, -1), tokens], 1)
    for i in range(model.first, len(model.backbone.blocks)):
        with prefixed(model.backbone.blocks[i], 5):
            whole = model.backbone.blocks[i](whole, **({} if ropes is None else {"rope": ropes[i]}))
    return head(model.backbone, whole[:, 5:])


def with_deep_prompts(model, images):
    tokens, ropes = model.below(images)
    return head(model.backbone, among_tokens(model.backbone, tokens, model.prompts, model.first, ropes=ropes))


def plainly(model, images):
    if model.adapter == "vpt_shallow":
        return with_shallow_prompts(model, images)
    if model.adapter == "vpt_deep":
        return with_deep_prompts(model, images)
    return (model.backbone if next(model.adapters.parameters(), None) is None else hooked(model))(images)


@pytest.mark.parametrize(("name", "adapter", "blocks"), CASES)
def test_equal_to_the_formulas_in_timms_own_forward_pass(name, adapter, blocks):
    model = adapted(vit(**MODELS[name]), adapter, blocks=blocks, recompute=blocks is None)
    images, learned = some_images(), list(model.trained())
    ours, theirs = model(images), plainly(model, images)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-11)
    if not learned:
        assert adapter == "none"
        return
    weights = torch.linspace(-1, 1, ours.numel(), dtype=torch.float64).view_as(ours)
    mine, other = (torch.autograd.grad((x * weights).sum(), learned, materialize_grads=True) for x in (ours, theirs))
    for own, expected in zip(mine, other, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-9, atol=1e-10)


def small(name, **options):
    """A model of timm's with another width."""
    return timm.create_model(name, num_classes=0, img_size=32, depth=2, embed_dim=48, num_heads=3, **options)


@pytest.mark.parametrize(
    "name",
    [
        "vit_base_patch16_224",
        "vit_base_patch16_clip_224",
        "vit_base_patch16_clip_quickgelu_224",
        "vit_base_patch16_siglip_224",  # attention pooling
        "vit_base_patch16_siglip_gap_224",
        "deit_base_distilled_patch16_224",
        "deit3_base_patch16_224",
        "eva_large_patch14_196",
    ],
)
def test_image_towers(name):
    backbone = small(name, **({"patch_size": 16} if "eva" in name else {})).double().eval()
    model = adapted(backbone, "adaptformer")
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(model(images), plainly(model, images), rtol=1e-9, atol=1e-10)
    assert model(images).shape == (2, backbone.num_features)


@pytest.mark.parametrize("adapter", START_UNCHANGED)
def test_new_adapters_change_nothing(adapter):
    backbone, images = vit(**MODELS["norms and scales"]), some_images()
    plain = AdaptedTransformer(backbone, "none").double()(images)
    model = AdaptedTransformer(backbone, adapter, width=4).double()
    assert torch.equal(model(images), plain)


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("name", ["class token", "eva02"])
def test_only_what_is_trained_moves(adapter, name):
    model = adapted(vit(**MODELS[name]), adapter, blocks=2)
    trained, before = {id(parameter) for parameter in model.trained()}, deepcopy(model.state_dict())
    assert len(trained) == len(list(model.trained()))
    moving = [name for name, parameter in model.named_parameters() if id(parameter) in trained]
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == moving
    assert bool(moving) == (adapter != "none")
    if not moving:
        return
    optimizer = torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.1)
    model(some_images()).square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is not None] == moving
    optimizer.step()
    assert [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])] == moving


def test_what_is_trained_of_the_backbone():
    names = {
        "bias": ["norm1.bias", "attn.qkv.bias", "attn.proj.bias", "norm2.bias", "mlp.fc1.bias", "mlp.fc2.bias"],
        "layer_norm": ["norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"],
    }
    for adapter, expected in names.items():
        model = AdaptedTransformer(vit(), adapter, blocks=1)
        moving = [name for name, parameter in model.backbone.named_parameters() if parameter.requires_grad]
        assert moving == [f"blocks.3.{name}" for name in expected]


@pytest.mark.parametrize("name", ["class token", "eva, rope of each block", "mean"])
def test_the_frozen_part_runs_apart(name):
    backbone = vit(**MODELS[name])
    model, images = adapted(backbone, "adaptformer", blocks=1), some_images()
    assert (model.first, len(model.adapters)) == (3, 1)
    tokens, ropes = model.below(images)
    assert not tokens.requires_grad
    expected, _ = AdaptedTransformer(backbone, "none").below(images)
    assert torch.equal(model.above(tokens, ropes), model(images))
    whole = AdaptedTransformer(backbone, "none").double()
    assert whole.first == 4
    assert torch.equal(whole.above(expected, ropes), whole(images))
    torch.testing.assert_close(whole(images), backbone(images), rtol=1e-10, atol=1e-11)


def test_groups_of_images(monkeypatch):
    model, images = adapted(vit(**MODELS["eva, rope of each block"]), "adaptformer"), some_images(7)
    learned, outputs = list(model.trained()), [model(images)]
    sizes, above = [], model._above
    monkeypatch.setattr(adapted_transformer, "GROUP", 2 * 17 * 24)  # elements of two images
    monkeypatch.setattr(model, "_above", lambda tokens, ropes: sizes.append(len(tokens)) or above(tokens, ropes))
    outputs.append(model(images))
    assert sizes == [3, 3, 1]
    torch.testing.assert_close(*outputs, rtol=1e-10, atol=1e-11)
    for own, expected in zip(*(torch.autograd.grad(x.square().sum(), learned) for x in outputs), strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("rope", ["cat", "mixed"])
def test_groups_of_images_with_dropped_patches(rope, monkeypatch):
    monkeypatch.setattr(adapted_transformer, "GROUP", 2 * 17 * 24)
    model = adapted(vit(kind=Eva, patch_drop_rate=0.5, rope_type=rope, **ROPE), "adaptformer").train()
    tokens, ropes = model.below(some_images(7))
    with torch.no_grad():
        expected = model.above(tokens, ropes)
    torch.testing.assert_close(model.above(tokens, ropes), expected, rtol=1e-10, atol=1e-11)


def saved_bytes(model, images):
    """Bytes of the storages, other than parameters', that autograd keeps for the backward pass."""
    storages, own = Counter(), {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        model.above(*model.below(images)).sum()
    return storages.total()


def test_saved_bytes_of_a_block():
    width, tokens, dim, heads, batch = 4, 65, 48, 3, 2
    images = torch.randn(batch, 3, 32, 32)
    shape = {"img_size": 32, "embed_dim": dim, "num_heads": heads}

    def saved(depth, adapter, recompute=True):
        model = AdaptedTransformer(new(depth=depth, **shape).float(), adapter, width=width, recompute=recompute)
        return saved_bytes(model, images)

    of_tokens, of_image = 4 * batch * tokens, 4 * batch
    # the inputs of both normalisations, queries, keys, values and the mixed values; statistics of the first
    # normalisation, the logarithms of the attention's denominators
    frozen = of_tokens * (6 * dim + 2 + heads)
    # the bottleneck's activations, and the scaled weights (the bias and the transposed weight are views or small)
    adapter = of_tokens * width + 4 * dim * width
    assert saved(4, "adaptformer") - saved(3, "adaptformer") == frozen + adapter
    kept = of_tokens * (4 * dim + 2)  # the input of GELU, and the statistics of the second normalisation
    assert saved(4, "adaptformer", False) - saved(3, "adaptformer", False) == frozen + adapter + kept
    # the first block has no gradient for its tokens; in the last one, only the class token has a query
    one = saved(1, "adaptformer")
    assert one <= of_tokens * dim + of_image * 3 * dim + adapter
    assert saved(3, "none") == 0
    # the input of the updates; the projections of the values before and after the update
    lora = 8 * dim * width  # the divided matrices
    assert saved(4, "lora") - saved(3, "lora") == frozen + of_tokens * (2 * dim + 2 * width) + lora


def test_second_derivatives():
    model = adapted(new(depth=2, embed_dim=8, num_heads=2, img_size=8), "adaptformer", recompute=True)
    images, learned = torch.randn(1, 3, 8, 8, dtype=torch.float64), dict(model.named_parameters())
    learned = {name: value.detach().requires_grad_() for name, value in learned.items() if "adapters.0" in name}

    def features(*values):
        return torch.func.functional_call(model, dict(zip(learned, values, strict=True)), images).tanh()

    with sdpa_kernel(SDPBackend.MATH):  # the fused attention has no second derivative, and PyTorch says so
        assert torch.autograd.gradcheck(features, list(learned.values()))
        assert torch.autograd.gradgradcheck(features, list(learned.values()))


def test_dropout_of_the_backbone_is_the_same_again():
    backbone = new(proj_drop_rate=0.4).train()
    block, x = backbone.blocks[1], torch.randn(2, 9, 24, dtype=torch.float64, requires_grad=True)
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(5)
        y = run_block(block, x, recompute=recompute)
        torch.manual_seed(6)
        gradients.append(torch.autograd.grad(y.square().sum(), x)[0])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_half_precision_and_autocast(adapter):
    model = AdaptedTransformer(new(**MODELS["class token"]).float(), adapter, width=3, length=5)
    images = torch.randn(2, 3, 16, 16)
    exact = model(images)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(images)
    torch.testing.assert_close(half.float(), exact, rtol=0.05, atol=0.05)
    if adapter != "none":
        learned = list(model.trained())
        own, expected = (torch.autograd.grad(x.float().sum(), learned) for x in (half, exact))
        for gradient, other in zip(own, expected, strict=True):
            torch.testing.assert_close(gradient, other, rtol=0.1, atol=0.05 * max(1.0, other.abs().max().item()))
    torch.testing.assert_close(model.bfloat16()(images.bfloat16()).float(), exact, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("adapter", ["adaptformer", "ssf", "vpt_shallow"])
def test_export(adapter):
    model, images = adapted(vit(**MODELS["eva, rope and class token"]), adapter), some_images(2)
    with torch.no_grad():
        program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False)
    more = some_images(5)
    torch.testing.assert_close(program.module()(more), model(more), rtol=1e-10, atol=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["adaptformer", "lora_mlp", "vpt_shallow"])
def test_compile(adapter):
    model = adapted(vit(**MODELS["class token"]), adapter, recompute=adapter == "lora_mlp")
    model, images = model.float(), some_images().float()  # Inductor does not compile float64 attention
    learned = list(model.trained())
    outputs = [model(images), torch.compile(model, fullgraph=True)(images)]
    gradients = [torch.autograd.grad(output.square().sum(), learned) for output in outputs]
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)
    for own, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-3, atol=1e-3 * max(1.0, expected.abs().max().item()))


def test_modules_start_as_the_authors_do():
    torch.manual_seed(0)
    for adapter in (AdaptFormer(300, 200), SequentialAdapter(300, 200)):
        for tensor in (adapter.down.bias, adapter.up.weight, adapter.up.bias):
            assert not tensor.any()
        assert adapter.down.weight.std().item() == pytest.approx((2 / (1 + 5) / 300) ** 0.5, rel=0.02)  # a = sqrt(5)
    assert AdaptFormer(30, 2).scale.tolist() == [1.0]
    lora = LoRA(300, 500, 200)
    assert not lora.b.any()
    assert lora.a.abs().max().item() == pytest.approx((6 / (1 + 5) / 200) ** 0.5, rel=0.01)  # as a (300, 200) weight
    ssf = SSF(100_000)
    assert (ssf.scale - 1).std().item() == pytest.approx(0.02, rel=0.03)
    assert ssf.shift.std().item() == pytest.approx(0.02, rel=0.03)


def test_default_width():
    for classes, depth in ((1000, 12), (365, 12), (8142, 12), (100, 12), (10, 12), (24, 12), (47, 12), (48, 12)):
        assert default_width(classes, depth) == 2 ** max(0, floor(log2(classes / (2 * depth))))
    model = AdaptedTransformer(vit(), num_classes=100, blocks=1)  # 100 / 8 = 12.5
    assert model.adapters[0]["parallel"].down.out_features == 8


def test_bad_arguments_are_named():
    for options, words in (
        ({"adapter": "prompt"}, "adapter: expected one of none, adaptformer, .*got 'prompt'"),
        ({"blocks": 5, "width": 2}, "blocks: expected 1 to 4"),
        ({"blocks": 0, "width": 2}, "blocks: expected 1 to 4"),
        ({}, "width: expected a width, or num_classes"),
        ({"width": 0}, "width: expected at least 1"),
        ({"num_classes": 0}, "num_classes: expected at least 1"),
        ({"adapter": "vpt_deep", "length": 0}, "length: expected at least 1"),
    ):
        with pytest.raises(ValueError, match=words):
            AdaptedTransformer(vit(), **options)
    with pytest.raises(ValueError, match=r"backbone: expected.*got ResNet"):
        AdaptedTransformer(timm.create_model("resnet18"), width=2)
    model = AdaptedTransformer(vit(**MODELS["eva02"]), width=2).double()
    with pytest.raises(ValueError, match="ropes: expected"):
        model.above(model.below(some_images())[0], None)
