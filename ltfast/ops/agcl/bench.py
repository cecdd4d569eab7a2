"""`agcl`, forward and backward, noise included."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from ltfast.ops.agcl import agcl
from ltfast.ops.core.bench import LOGITS, Case, Growth, Unavailable, Work, backward, compilers, copy


def published(
    cosine: Tensor,
    target: Tensor,
    rarity: Tensor,
    scale: float = 20.0,
    margin: float = 0.1,
    noise_mul: float = 0.5,
    gamma_pos: float = 0.0,
    gamma_neg: float = 4.0,
    smoothing: float = 0.1,
) -> Tensor:
    """LPT's loss with PyTorch's own normal noise; rarity is (log n_max - log n_c) / max."""
    classes = cosine.shape[1]
    noise = (torch.randn_like(cosine) / 3).clamp(-1, 1).abs()
    own = F.one_hot(target, classes).to(cosine.dtype)
    log_p = F.log_softmax(scale * (cosine - noise_mul * noise * rarity - margin * own), dim=1)
    p = log_p.exp()
    focus = (1 - p * own - (1 - p) * (1 - own)) ** (gamma_pos * own + gamma_neg * (1 - own))
    smoothed = own * (1 - smoothing) + smoothing / classes
    return -(smoothed * focus * log_p).sum(1).mean()


def case(device: torch.device, shape: str, rows: int, classes: int, dtype: torch.dtype) -> Case:
    def inputs() -> tuple[torch.Tensor, torch.Tensor]:
        cosine = (torch.rand(rows, classes, device=device) * 2 - 1).to(dtype).requires_grad_()
        return cosine, torch.randint(classes, (rows,), device=device)

    counts = torch.linspace(1000, 5, classes, dtype=torch.float64, device=device)
    rarity = (counts.max().log() - counts.log()) / (counts.max().log() - counts.min().log())
    smoothing = 0.1 / classes
    ours = partial(agcl, class_noise=0.5 * rarity.float(), weight_pos=0.9 + smoothing, weight_neg=smoothing)
    rarity = rarity.to(dtype)
    cross_entropies = {
        "quack cross_entropy": backward(partial(quack_cross_entropy, classes * dtype.itemsize)),
        # last: it writes its gradient over the logits
        "liger cross_entropy": backward(liger_cross_entropy),
    }

    return Case(
        "agcl",
        shape,
        f"{rows} x {classes}",
        dtype,
        # an exponential for the softmax; the noise could be a polynomial of uniform numbers
        Work(bytes=2 * rows * classes * dtype.itemsize, exps=rows * classes),
        inputs,
        {
            "ltfast": backward(lambda: ours),
            "eager": backward(lambda: published, rarity=rarity),
            **{name: backward(make, rarity=rarity) for name, make in compilers(published, device).items()},
            "copy": partial(copy, rows, classes, dtype=dtype, device=device),
            **(cross_entropies if device.type == "cuda" else {}),
        },
    )


def liger_cross_entropy() -> Callable[..., torch.Tensor]:
    """Another loss of the same bytes."""
    from liger_kernel.transformers.functional import liger_cross_entropy

    return liger_cross_entropy


def quack_cross_entropy(row_bytes: int) -> Callable[..., torch.Tensor]:
    """Another loss of the same bytes; it keeps a row in the shared memory of a cluster, 16 blocks of 227 KiB."""
    if row_bytes > 16 * 227 * 1024:
        raise Unavailable("a row does not fit into the shared memory of a cluster")
    from quack.cross_entropy import cross_entropy

    return cross_entropy


def cases(device: torch.device) -> Iterator[Case]:
    for shape, (rows, classes) in LOGITS.items():
        yield case(device, shape, rows, classes, torch.float32)
    yield case(device, "imagenet-lt", *LOGITS["imagenet-lt"], torch.bfloat16)


def growth(device: torch.device) -> Iterator[Growth]:
    yield Growth(
        "agcl",
        {"rows": 256, "classes": 1000},
        {"rows": (16, 64, 256, 1024, 4096), "classes": (10, 100, 1000, 10_000, 100_000)},
        lambda rows, classes: case(device, "growth", rows, classes, torch.float32),
    )
