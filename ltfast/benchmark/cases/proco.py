"""`proco`: a training step of `ProCoLoss` with its statistics."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from ltfast.benchmark.cases import published_proco
from ltfast.losses import ProCoLoss
from ltfast.ops.core.bench import Bench, Case, Step, Work, backward, compilers
from ltfast.ops.vmf.bench import SIZES, loss_work, published, unit


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
        "eager": closed_form(lambda: published),
        **{name: closed_form(make) for name, make in compilers(published, device).items()},
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


def with_statistics(update: Callable[[Tensor, Tensor], None], loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def step(features: Tensor, labels: Tensor) -> Tensor:
        update(features.detach(), labels)
        return loss(features, labels)

    return step


def cases(device: torch.device) -> Iterator[Case]:
    for shape, size in SIZES.items():
        if shape != "million":
            yield proco(device, shape, *size)


BENCHES = {"proco": Bench(cases)}
