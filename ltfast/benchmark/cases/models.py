"""What models do beside their losses: DO's test-time weights, LPT's second phase, a masked encoder."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ltfast.models import MaskedAutoencoder, PromptedClassifier
from ltfast.models.aggregation import aggregation_weights, agreement
from ltfast.ops.core.bench import Bench, Case, Step, Work

STEPS = 50  # of gradient ascent
META = torch.device("meta")


def products(step: Step, inputs: Any) -> float:
    """Flops of the matrix products of a step, counted by PyTorch: on the meta device nothing is computed."""
    with FlopCounterMode(display=False) as counter:
        step(inputs)
    return counter.get_total_flops()


def parameters(model: nn.Module, trained: Sequence[Tensor]) -> float:
    """Bytes of a model's float32 parameters, read once, and of the gradients."""
    return 4 * sum(parameter.numel() for parameter in (*model.parameters(), *trained))


def aggregation(device: torch.device, shape: str, images: int, models: int, classes: int) -> Case:
    """Of the predictions for two views."""

    def inputs() -> tuple[Tensor, Tensor]:
        first, second = torch.randn(2, images, models, classes, device=device).mul(3).softmax(-1)
        return first, second

    def ours(views: tuple[Tensor, Tensor]) -> Tensor:
        return aggregation_weights(agreement(*views), steps=STEPS)

    def eager(views: tuple[Tensor, Tensor]) -> Tensor:
        """Gradients through the full predictions."""
        first, second = views
        learned = torch.zeros(images, models, device=device, requires_grad=True)
        for _ in range(STEPS):
            weights = learned.softmax(-1)[..., None]
            objective = ((weights * first).sum(1) * (weights * second).sum(1)).sum()
            (gradient,) = torch.autograd.grad(objective, learned)
            learned.data += gradient
        return learned.detach().softmax(-1)

    return Case(
        "aggregation",
        shape,
        f"{images} x {models} x {classes}, {STEPS} steps",
        torch.float32,
        Work(
            bytes=4 * images * models * (2 * classes + 1),
            flops=2 * images * models**2 * classes,  # the models' T x T products; the classes are not needed again
            exps=(STEPS + 1) * images * models,
        ),
        inputs,
        {"ltfast": lambda: ours, "eager": lambda: eager},
    )


def published_features(model: PromptedClassifier, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`PromptedClassifier.grouped_features` with prompts among the tokens, in two whole passes."""
    transformer, pool, blocks = model.transformer, model.pool, model.transformer.backbone.blocks
    first = len(blocks) - pool.prompts.shape[1]  # with group prompts

    def features(group: Tensor | None) -> Tensor:
        tokens = transformer.embed(images)[0]
        for i, block in enumerate(blocks):
            prompts = [transformer.prompts[i].expand(len(images), -1, -1)]
            if group is not None and i >= first:
                prompts.append(group[:, i - first])
            joined = torch.cat([*prompts, tokens], 1)
            tokens = block(joined)[:, joined.shape[1] - tokens.shape[1] :]
        return transformer.features(tokens)

    with torch.no_grad():
        query = features(None)
    indices, cosines = pool.match(query)
    return features(pool.select(indices)), indices, cosines


def published_phase(model: PromptedClassifier, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`PromptedClassifier.grouped` in the same way."""
    features, indices, cosines = published_features(model, images)
    return model.head(features), indices, cosines


def prompts(device: torch.device, shape: str, backbone: str, images: int, dtype: torch.dtype) -> Case:
    """LPT's second phase: the gradient in the pool and the classifier; the backbone is frozen."""

    def new(device: torch.device) -> PromptedClassifier:
        with device:
            model = PromptedClassifier(backbone, 1000, length=10, group_length=10, group_blocks=6)
        model.transformer.requires_grad_(False)
        return model

    def trained(model: PromptedClassifier) -> list[nn.Parameter]:
        return [*model.pool.parameters(), *model.head.parameters()]

    def step(model: PromptedClassifier, forward: Callable[..., tuple[Tensor, Tensor, Tensor]], images: Tensor) -> Any:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            scores, _, cosines = forward(model, images)
        return torch.autograd.grad(scores.float().square().sum() + cosines.sum(), trained(model))

    def draw(device: torch.device) -> Tensor:
        return torch.randn(images, 3, 224, 224, device=device)

    def start(forward: Callable[..., tuple[Tensor, Tensor, Tensor]]) -> Step:
        return partial(step, model(), forward)

    model, outline = cache(partial(new, device)), new(META)
    return Case(
        "prompts",
        shape,
        f"{backbone}, {images} images, 10 + 10 prompts",
        dtype,
        Work(
            bytes=parameters(outline, trained(outline)) + 4 * draw(META).numel(),
            flops=products(partial(step, outline, PromptedClassifier.grouped), draw(META)),
        ),
        partial(draw, device),
        {
            "ltfast": partial(start, PromptedClassifier.grouped),
            "published": partial(start, published_phase),
        },
    )


def masked_autoencoder(device: torch.device, shape: str, backbone: str, images: int) -> Case:
    """The encoder, which sees a quarter of the patches, and the gradient in its parameters."""

    def new(device: torch.device) -> MaskedAutoencoder:
        with device:
            encoder: Any = timm.create_model(backbone, num_classes=0)
            return MaskedAutoencoder(encoder, decoder_dim=64, decoder_depth=1, decoder_heads=1)

    def draw(device: torch.device) -> tuple[Tensor, Tensor]:
        pixels = torch.randn(images, 3, 224, 224, device=device)
        return pixels, outline.draw(pixels)[0]

    def all_patches(model: MaskedAutoencoder, pixels: Tensor, _: Tensor) -> Tensor:
        return model.encoder.forward_features(pixels)

    def step(
        model: MaskedAutoencoder, encode: Callable[..., Tensor], inputs: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, ...]:
        # normalised tokens have the same sum and length whatever the parameters; their mean has not
        loss = encode(model, *inputs).mean(1).square().sum()
        return torch.autograd.grad(loss, list(model.encoder.parameters()))

    def start(encode: Callable[..., Tensor]) -> Step:
        return partial(step, model(), encode)

    model, outline = cache(partial(new, device)), new(META)
    return Case(
        "masked_autoencoder",
        shape,
        f"{backbone}, {images} images, mask 0.75",
        torch.float32,
        Work(
            bytes=parameters(outline.encoder, list(outline.encoder.parameters())) + 4 * images * 3 * 224**2,
            flops=products(partial(step, outline, MaskedAutoencoder.encode), draw(META)),
        ),
        partial(draw, device),
        {"ltfast": partial(start, MaskedAutoencoder.encode), "all patches": partial(start, all_patches)},
    )


def aggregation_cases(device: torch.device) -> Iterator[Case]:
    yield aggregation(device, "small", 1000, 3, 100)
    yield aggregation(device, "imagenet-lt", 1000, 3, 1000)
    yield aggregation(device, "large", 50_000, 3, 1000)


def prompt_cases(device: torch.device) -> Iterator[Case]:
    if device.type == "cuda":
        yield prompts(device, "imagenet-lt", "vit_base_patch16_224", 256, torch.bfloat16)
    else:
        yield prompts(device, "imagenet-lt", "vit_small_patch16_224", 4, torch.float32)
        yield prompts(device, "large", "vit_base_patch16_224", 16, torch.float32)


def masked_autoencoder_cases(device: torch.device) -> Iterator[Case]:
    yield masked_autoencoder(device, "small", "vit_tiny_patch16_224", 8)


BENCHES = {
    "aggregation": Bench(aggregation_cases),
    "prompts": Bench(prompt_cases),
    "masked_autoencoder": Bench(masked_autoencoder_cases),
}
