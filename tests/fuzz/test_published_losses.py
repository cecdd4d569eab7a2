"""The losses that stand beside ours in comparisons, against their formulas."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from fuzz import draw as d
from fuzz.runner import Entry, fuzz
from fuzz.test_logit_losses import cross_entropy_saturates, largest_weight, weighted_unit
from fuzz.test_modules import agcl_tolerance, of_cross_entropy, softmax_tolerance
from ltfast.losses import (
    BalancedSoftmaxLoss,
    ClassBalancedLoss,
    FocalLoss,
    GCLLoss,
    LADELoss,
    LDAMLoss,
    SeesawLoss,
    VSLoss,
)
from ltfast.ops import cross_entropy
from ltfast.ops.noise import draw_seed, half_normal

WITHOUT_MINUS_INFINITY = (math.nan, math.inf)  # A-GCL leaves out a class with -inf, and the formula multiplies it by 0
exponents = d.number(0, 5, 0.5, 1.0, 2.0)
OF_PYTORCH = ("without gradients", "two threads", "contiguous arguments")  # its sums agree to rounding only
FLOAT32 = 2.0**-24  # the factors and shifts of the modules are float32 whatever the logits are


def of_labels(**options: Any) -> Any:
    """``of_cross_entropy`` for losses that take no probabilities."""

    @st.composite
    def strategy(draw: st.DrawFn, backend: str) -> dict[str, Any]:
        given = draw(of_cross_entropy(**options)(backend))
        labels, ignored = draw(d.labels_and_ignored(*given["logits"].shape))
        return given | {"target": labels, "ignore_index": ignored}

    return strategy


def own_weights(arguments: Any) -> Any:
    """A strategy's arguments without ``weight``, for losses that weight the classes themselves."""

    @st.composite
    def strategy(draw: st.DrawFn, backend: str) -> dict[str, Any]:
        given = draw(arguments(backend))
        del given["weight"]
        return given

    return strategy


def rows_of(
    logits: Tensor, target: Tensor, weight: Tensor | None, label_smoothing: float, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The logits and weighted shares of the classes (R, C), 0 in ignored rows, and what each row counts in a mean."""
    weight = logits.new_ones(logits.shape[1]) if weight is None else weight
    if target.is_floating_point():
        share, counts, counted = target, logits.new_ones(len(logits)), torch.ones(len(logits), dtype=torch.bool)
    else:
        counted = target.long() != ignore_index
        label = torch.where(counted, target.long(), 0)
        share, counts = F.one_hot(label, logits.shape[1]).double(), torch.where(counted, weight[label], 0)
    share = weight * (share * (1 - label_smoothing) + label_smoothing / logits.shape[1])
    return torch.where(counted[:, None], logits, 0), torch.where(counted[:, None], share, 0), counts


def reduced(rows: Tensor, counts: Tensor, reduction: str) -> Tensor:
    return {"none": rows, "sum": rows.sum(), "mean": rows.sum() / counts.sum()}[reduction]


def scaled_saturates(logits: Tensor, scale: float, **_: Any) -> Tensor:
    return cross_entropy_saturates(scale * logits)


def scaled_unit(given: Mapping[str, Any]) -> float:
    return 0.2 * given["scale"] * largest_weight(given)


def published(name: str, make: Any, arguments: Any, reference: Any, **others: Any) -> Entry:
    """An entry for a loss over logits that takes the arguments of ``nn.CrossEntropyLoss``."""

    def run(counts: list[int], logits: Tensor, target: Tensor, **options: Any) -> Tensor:
        return make(counts, **options)(logits, target)

    of_softmax: dict[str, Any] = {
        "run": run,
        "row_by_row": ("target",),
        "gradients": ("logits",),
        "tolerance": softmax_tolerance,
        "size": largest_weight,
        "unit": weighted_unit,
        "rounding": {"logits": FLOAT32},
        "unclear": cross_entropy_saturates,
        "loose": ("without gradients",),
        "triton_weight": 0.05,
        "weight": 0.3,
    }
    return Entry(name=f"{name}_loss", arguments=arguments, reference=reference, **of_softmax | others)


def plain_balanced_softmax(counts: list[int], logits: Tensor, target: Tensor, **options: Any) -> Tensor:
    return cross_entropy(logits, target, torch.tensor(counts).double().log(), **options)


BALANCED_SOFTMAX = published("balanced_softmax", BalancedSoftmaxLoss, of_cross_entropy(), plain_balanced_softmax)


def plain_ldam(
    counts: list[int], logits: Tensor, target: Tensor, scale: float, max_margin: float, ignore_index: int,
    **options: Any,
) -> Tensor:  # fmt: skip
    n = torch.tensor(counts).double()
    margins = max_margin * (n.min() / n).sqrt().sqrt()
    _, share, _ = rows_of(logits, target, None, 0.0, ignore_index)
    return cross_entropy(scale * (logits - share * margins), target, ignore_index=ignore_index, **options)


LDAM = published(
    "ldam",
    LDAMLoss,
    of_cross_entropy(scale=d.number(0.1, 50, 30.0), max_margin=d.number(0, 1, 0.5)),
    plain_ldam,
    unit=scaled_unit,
    unclear=scaled_saturates,
)


def plain_vs(counts: list[int], logits: Tensor, target: Tensor, gamma: float, tau: float, **options: Any) -> Tensor:
    n = torch.tensor(counts).double()
    return cross_entropy(logits * (n / n.max()) ** gamma, target, tau * (n / n.sum()).log(), **options)


VS = published("vs", VSLoss, of_cross_entropy(gamma=d.number(0, 1, 0.3), tau=d.number(-2, 2, 1.0, 0.0)), plain_vs)


def plain_focal(
    counts: list[int], logits: Tensor, target: Tensor, gamma: float, reduction: str, **options: Any
) -> Tensor:
    z, share, of_rows = rows_of(logits, target, **options)
    log_p = z.log_softmax(1)
    # at p = 1 the derivative of a power under 1 is infinite, and that of the product 0
    rest = (-log_p.expm1()).clamp(min=1e-300)
    return reduced(-(share * rest**gamma * log_p).sum(1), of_rows, reduction)


FOCAL = published(
    "focal",
    FocalLoss,
    of_cross_entropy(gamma=exponents, broken=WITHOUT_MINUS_INFINITY),
    plain_focal,
    loose=OF_PYTORCH,
)


def effective_numbers(counts: list[int], beta: float) -> Tensor:
    weight = (1 - beta) / (1 - beta ** torch.tensor(counts).double())
    return weight / weight.mean()


def plain_class_balanced(
    counts: list[int], logits: Tensor, target: Tensor, beta: float, loss: str, gamma: float, reduction: str,
    **options: Any,
) -> Tensor:  # fmt: skip
    weight = effective_numbers(counts, beta)
    if loss == "cross_entropy":
        return cross_entropy(logits, target, weight=weight, reduction=reduction, **options)
    z, share, of_rows = rows_of(logits, target, weight, **options)
    q = {True: F.logsigmoid(z), False: F.logsigmoid(-z)}
    of_class = {own: -((1 - log_q.exp()) ** gamma) * log_q for own, log_q in q.items()}
    rows = (share * of_class[True] + (share.sum(1, keepdim=True) - share) * of_class[False]).sum(1)
    return reduced(rows, of_rows, reduction)


def largest_effective_number(given: Mapping[str, Any]) -> float:
    return effective_numbers(given["counts"], given["beta"]).max().item()


CLASS_BALANCED = published(
    "class_balanced",
    ClassBalancedLoss,
    own_weights(
        of_cross_entropy(
            beta=d.number(0, 0.9999, 0.999),
            loss=st.sampled_from(("cross_entropy", "focal")),
            gamma=exponents,
        )
    ),
    plain_class_balanced,
    size=largest_effective_number,
    unit=lambda given: 0.03 * largest_effective_number(given),
    loose=OF_PYTORCH,
)


def plain_lade(
    counts: list[int], logits: Tensor, target: Tensor, remine_lambda: float, estim_loss_weight: float,
    weight: Tensor | None, label_smoothing: float, ignore_index: int, reduction: str,
) -> Tensor:  # fmt: skip
    prior = torch.tensor(counts).double() / sum(counts)
    options = {"weight": weight, "label_smoothing": label_smoothing, "ignore_index": ignore_index}
    loss = cross_entropy(logits, target, prior.log(), reduction=reduction, **options)
    _, share, _ = rows_of(logits, target, None, 0.0, ignore_index)
    _, _, of_rows = rows_of(logits, target, weight, 0.0, ignore_index)
    counted = torch.ones_like(of_rows).bool() if target.is_floating_point() else target.long() != ignore_index
    lader = torch.zeros((), dtype=torch.float64)
    for c in range(len(counts)):
        x, own = logits[counted, c], share[counted, c]
        mean = (own * x).sum() / own.sum() if own.sum() > 0 else (0 * x).sum()
        log_mean = (x - prior[c].log() - math.log(len(counts))).logsumexp(0) - math.log(max(len(x), 1))
        lader = lader - prior[c] * (mean - log_mean - remine_lambda * log_mean**2)
    added = estim_loss_weight * lader
    if reduction == "mean":
        return loss + added
    added = torch.where(of_rows > 0, added * of_rows, 0)
    return loss + (added if reduction == "none" else added.sum())


LADE = published(
    "lade",
    LADELoss,
    of_cross_entropy(remine_lambda=d.number(0, 1, 0.1), estim_loss_weight=d.number(0, 2, 0.1), broken=()),
    plain_lade,
    loose=OF_PYTORCH,
)


def run_gcl(counts: list[int], logits: Tensor, target: Tensor, seed: int, **options: Any) -> Tensor:
    return GCLLoss(counts, **options)(logits, target, generator=torch.Generator().manual_seed(seed))


def plain_gcl(
    counts: list[int], logits: Tensor, target: Tensor, seed: int, scale: float, margin: float, noise_mul: float,
    ignore_index: int, **options: Any,
) -> Tensor:  # fmt: skip
    n = torch.tensor(counts).double()
    rarity = n.max().log() - n.log()
    clouds = noise_mul * rarity / rarity.max().clamp(min=1e-300)
    noise = half_normal(*logits.shape, draw_seed(logits.device, torch.Generator().manual_seed(seed)))
    _, own, _ = rows_of(logits, target, None, 0.0, ignore_index)
    z = scale * (logits - noise * clouds - margin * own)
    return cross_entropy(z, target, ignore_index=ignore_index, **options)


GCL = published(
    "gcl",
    GCLLoss,
    of_labels(
        seed=d.seeds,
        scale=d.number(0.1, 50, 30.0),
        margin=d.number(0, 1, 0.0),
        noise_mul=d.number(0, 2, 0.5),
        broken=WITHOUT_MINUS_INFINITY,
    ),
    plain_gcl,
    run=run_gcl,
    tolerance=lambda place, dtype, given: agcl_tolerance(place, dtype, given | {"variant": "official"}),
    unit=scaled_unit,
    unclear=scaled_saturates,
    loose=(),
)


def plain_seesaw(
    counts: list[int], logits: Tensor, target: Tensor, p: float, q: float, eps: float, ignore_index: int,
    **options: Any,
) -> Tensor:  # fmt: skip
    """With the counts of this batch."""
    labels = target.long()
    counted = labels != ignore_index
    label = torch.where(counted, labels, 0)[:, None]
    seen = labels[counted].bincount(minlength=len(counts)).clamp(min=1).double()
    mitigation = p * (seen / seen[label]).clamp(max=1).log()
    log_sigma = logits.detach().log_softmax(1)
    compensation = q * (log_sigma - log_sigma.gather(1, label).clamp(min=math.log(eps))).clamp(min=0)
    z = logits + (mitigation + compensation).scatter(1, label, 0)
    return cross_entropy(z, labels, ignore_index=ignore_index, **options)


SEESAW = published(
    "seesaw",
    SeesawLoss,
    of_labels(p=d.number(0, 2, 0.8), q=d.number(0, 4, 2.0), eps=d.number(1e-6, 1, 0.01)),
    plain_seesaw,
    loose=OF_PYTORCH,
)

globals().update(fuzz(BALANCED_SOFTMAX, LDAM, VS, FOCAL, CLASS_BALANCED, LADE, GCL, SEESAW))
