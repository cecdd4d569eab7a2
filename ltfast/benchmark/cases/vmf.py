"""`proco`: a training step of `ProCoLoss` with its statistics; `vmf_cross_entropy`: the op behind it alone."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from ltfast.benchmark.case import Case, Growth, Step, Work, backward, compilers
from ltfast.benchmark.cases import published, published_proco
from ltfast.losses import ProCoLoss
from ltfast.ops import vmf_cross_entropy

SIZES = {
    "small": (256, 100, 128),
    "imagenet-lt": (256, 1000, 128),
    "inat18": (1024, 8142, 128),
    "large": (2048, 8142, 128),
    "million": (16, 1_000_000, 128),
}


def proco(device: torch.device, shape: str, rows: int, classes: int, width: int) -> Case:
    """The closed form's peers update their statistics as ltfast does; the published algorithm as its authors do."""

    counts = torch.arange(1, classes + 1)
    log_prior = (counts / counts.sum()).log()

    def new() -> ProCoLoss:
        return ProCoLoss(classes, width, class_counts=counts).to(device)

    def ours() -> Callable[..., Tensor]:
        loss = new()
        return with_statistics(loss.update, loss)

    def closed_form(make: Callable[[], Callable[..., Tensor]]) -> Callable[[], Step]:
        def start() -> Callable[..., Tensor]:
            loss, function = new(), make()
            return with_statistics(
                loss.update, lambda z, y: function(z, y, loss.directions, loss.kappa, loss.log_prior)
            )

        return backward(start)

    def as_published() -> Callable[..., Tensor]:
        baseline = published_proco.Baseline(classes, width)
        baseline.means = [new().start.clone() for _ in range(2)]
        return with_statistics(baseline.update, lambda z, y: F.cross_entropy(baseline.logits(z) + log_prior, y))

    implementations = {
        "ltfast": backward(ours),
        "eager": closed_form(lambda: published.vmf_cross_entropy),
        **{name: closed_form(make) for name, make in compilers(published.vmf_cross_entropy, device).items()},
    }
    if device.type == "cpu" and rows * classes * width <= 2**25:  # its tensors have that many elements
        implementations["published"] = backward(as_published)

    work = loss_work(rows, classes, width)
    return Case(
        "proco",
        shape,
        f"{rows} x {classes} x {width}",
        torch.float32,
        # the directions come of two sums: this epoch's, read and written, and the one's before
        Work(work.bytes + 4 * 2 * classes * width, work.flops, work.exps),
        lambda: (unit(rows, width, device).requires_grad_(), torch.randint(classes, (rows,), device=device)),
        implementations,
    )


def cross_entropy(device: torch.device, shape: str, rows: int, classes: int, width: int) -> Case:
    def inputs() -> tuple[Tensor, ...]:
        features, labels = unit(rows, width, device).requires_grad_(), torch.randint(classes, (rows,), device=device)
        kappa, log_prior = 1000 * torch.rand(classes, device=device), torch.randn(classes, device=device)
        return features, labels, unit(classes, width, device), kappa, log_prior

    def ours(z: Tensor, y: Tensor, directions: Tensor, kappa: Tensor, log_prior: Tensor) -> Tensor:
        return vmf_cross_entropy(z, y, directions, kappa, log_prior=log_prior)

    def linear(z: Tensor, y: Tensor, directions: Tensor, kappa: Tensor, log_prior: Tensor) -> Tensor:
        return published.linear_cross_entropy(z, y, directions, log_prior)

    return Case(
        "vmf_cross_entropy",
        shape,
        f"{rows} x {classes} x {width}",
        torch.float32,
        loss_work(rows, classes, width),
        inputs,
        {
            "ltfast": backward(lambda: ours),
            "eager": backward(lambda: published.vmf_cross_entropy),
            **{name: backward(make) for name, make in compilers(published.vmf_cross_entropy, device).items()},
            # another loss: what a linear classifier costs
            "linear + cross_entropy": backward(lambda: linear),
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


def with_statistics(update: Callable[[Tensor, Tensor], None], loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def step(features: Tensor, labels: Tensor) -> Tensor:
        update(features.detach(), labels)
        return loss(features, labels)

    return step


def unit(rows: int, width: int, device: torch.device) -> Tensor:
    return F.normalize(torch.randn(rows, width, device=device))


def cases(device: torch.device) -> Iterator[Case]:
    for shape, size in SIZES.items():
        if shape != "million":
            yield proco(device, shape, *size)
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
