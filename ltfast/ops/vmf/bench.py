"""`vmf_cross_entropy`, forward and backward."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from ltfast.ops.core.bench import Case, Growth, Work, backward, compilers
from ltfast.ops.vmf import vmf_cross_entropy

SIZES = {
    "small": (256, 100, 128),
    "imagenet-lt": (256, 1000, 128),
    "inat18": (1024, 8142, 128),
    "large": (2048, 8142, 128),
    "million": (16, 1_000_000, 128),
}


def published(
    features: Tensor, target: Tensor, directions: Tensor, kappa: Tensor, log_prior: Tensor, temperature: float = 0.1
) -> Tensor:
    """ProCo's loss by the closed form (ltfast.ops.vmf's formulas, two terms of the series) in plain PyTorch."""
    nu = features.shape[1] / 2 - 1
    s = (nu**2 + kappa**2).sqrt()
    scaled = directions * (2 / temperature * kappa)[:, None]
    increments = torch.addmm(features.square().sum(1, keepdim=True) / temperature**2, features, scaled.T)
    longer = (s**2 + increments).clamp(min=nu**2).sqrt()

    def series(s: Tensor) -> Tensor:
        p, q = 1 / s, (nu / s) ** 2
        return p * (3 - 5 * q) / 24 + p**2 * (1 - 6 * q + 5 * q**2) / 16

    d = increments / (longer + s)
    logits = d - nu * torch.log1p(d / (nu + s)) - 0.5 * torch.log1p(d / s) + series(longer) - series(s)
    return F.cross_entropy(logits + log_prior, target)


def linear_cross_entropy(features: Tensor, target: Tensor, directions: Tensor, log_prior: Tensor) -> Tensor:
    """What a linear classifier costs: the same matrix products, and no Bessel function."""
    return F.cross_entropy(F.linear(features, directions, log_prior), target)


def liger_fused_linear_cross_entropy() -> Callable[..., Tensor]:
    """The loss of a linear classifier without all of its logits."""
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return lambda z, y, directions, _, log_prior: liger_fused_linear_cross_entropy(z, directions, y, log_prior)


def cut_cross_entropy() -> Callable[..., Tensor]:
    """The same from Apple, in bfloat16: it takes no float32."""
    from cut_cross_entropy import linear_cross_entropy

    def loss(z: Tensor, y: Tensor, directions: Tensor, _: Tensor, log_prior: Tensor) -> Tensor:
        return linear_cross_entropy(z.bfloat16(), directions.bfloat16(), y, bias=log_prior.bfloat16())

    return loss


def cross_entropy(device: torch.device, shape: str, rows: int, classes: int, width: int) -> Case:
    def inputs() -> tuple[Tensor, ...]:
        features, labels = unit(rows, width, device).requires_grad_(), torch.randint(classes, (rows,), device=device)
        kappa, log_prior = 1000 * torch.rand(classes, device=device), torch.randn(classes, device=device)
        return features, labels, unit(classes, width, device), kappa, log_prior

    def ours(z: Tensor, y: Tensor, directions: Tensor, kappa: Tensor, log_prior: Tensor) -> Tensor:
        return vmf_cross_entropy(z, y, directions, kappa, log_prior=log_prior)

    def linear(z: Tensor, y: Tensor, directions: Tensor, kappa: Tensor, log_prior: Tensor) -> Tensor:
        return linear_cross_entropy(z, y, directions, log_prior)

    fused = {
        "liger fused linear": backward(liger_fused_linear_cross_entropy),
        "cut-cross-entropy, bf16": backward(cut_cross_entropy),
    }
    return Case(
        "vmf_cross_entropy",
        shape,
        f"{rows} x {classes} x {width}",
        torch.float32,
        loss_work(rows, classes, width),
        inputs,
        {
            "ltfast": backward(lambda: ours),
            "eager": backward(lambda: published),
            **{name: backward(make) for name, make in compilers(published, device).items()},
            # another loss, of a linear classifier
            "linear + cross_entropy": backward(lambda: linear),
            **(fused if device.type == "cuda" else {}),
        },
    )


def loss_work(rows: int, classes: int, width: int) -> Work:
    """Features, their gradient and the directions once; a product for the logits and one for the gradient; two
    logarithms for each logit, and an exponential for the softmax."""
    return Work(
        bytes=4 * (2 * rows * width + classes * (width + 2)),
        flops=2 * 2 * rows * classes * width,
        exps=3 * rows * classes,
    )


def unit(rows: int, width: int, device: torch.device) -> Tensor:
    return F.normalize(torch.randn(rows, width, device=device))


def cases(device: torch.device) -> Iterator[Case]:
    for shape, size in SIZES.items():
        yield cross_entropy(device, shape, *size)


def growth(device: torch.device) -> Iterator[Growth]:
    yield Growth(
        "vmf_cross_entropy",
        {"rows": 256, "classes": 1000, "width": 128},
        {
            "rows": (64, 128, 256, 512, 1024),
            "classes": (250, 1000, 4000, 16_000),
            "width": (32, 64, 128, 256, 1024),
        },
        lambda rows, classes, width: cross_entropy(device, "growth", rows, classes, width),
    )
