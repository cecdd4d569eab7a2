"""The losses over the ops, with what they keep."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from unittest import mock

import torch
from hypothesis import strategies as st
from torch import Tensor

from fuzz import draw as d
from fuzz.runner import Entry, fuzz
from fuzz.test_logit_losses import (
    bce_saturates,
    bce_tolerance,
    cross_entropy_options,
    cross_entropy_saturates,
    largest_weight,
    score_rounding,
    weighted_unit,
)
from ltfast.benchmark.cases import published_dscl as published
from ltfast.losses import (
    AGCLLoss,
    BalancedBCELoss,
    CompensationLoss,
    DSCLLoss,
    LinearAGCLLoss,
    LinearBalancedBCELoss,
    LinearCompensationLoss,
    LinearCrossEntropyLoss,
    LinearLogitAdjustedLoss,
    LogitAdjustedLoss,
    MemoryQueue,
    PBSDLoss,
    ProCoLoss,
    SupConQueueLoss,
)
from ltfast.ops import cross_entropy
from ltfast.ops.linear import blocks
from ops.compare import tolerances
from ops.conftest import Place

BATCHES = (1, 2, 3, 7, 16, 17, 33)
CLASSES = (1, 2, 3, 7, 10, 31, 100, 257)
WIDTHS = (2, 3, 8, 16, 17, 64, 129)


@st.composite
def class_counts(draw: st.DrawFn, classes: int) -> list[int]:
    if classes < 10:
        return draw(st.lists(st.integers(1, 10**6), min_size=classes, max_size=classes))
    return torch.randint(1, 2000, (classes,), generator=torch.Generator().manual_seed(draw(d.seeds))).tolist()


@st.composite
def counts_and_logits(
    draw: st.DrawFn,
    backend: str,
    *,
    least: int = 1,
    extremes: Any = d.finite_extremes,
    broken: Sequence[float] = d.BROKEN,
) -> dict[str, Any]:
    rows, classes = draw(st.sampled_from(BATCHES)), draw(st.sampled_from([n for n in CLASSES if n >= least]))
    scales = (1.0, 1.0, 1.0, 30.0, 1e4, 1e-30)
    fills = ("uniform", "normal", "constant", "wide", "extreme") if extremes else ("uniform", "normal", "constant")
    return {
        "counts": draw(class_counts(classes)),
        "logits": draw(d.floats((rows, classes), fills=fills, scales=scales, extremes=extremes, broken=broken)),
        "target": draw(d.labels(rows, classes)),
    }


def with_options(
    *, least: int = 1, extremes: Any = d.finite_extremes, broken: Sequence[float] = d.BROKEN, **options: Any
) -> Any:
    """A strategy of counts, logits, labels and options, each a strategy of its own."""

    @st.composite
    def strategy(draw: st.DrawFn, backend: str) -> dict[str, Any]:
        given = draw(counts_and_logits(backend, least=least, extremes=extremes, broken=broken))
        return given | {name: draw(option) for name, option in options.items()}

    return strategy


def run_agcl(counts: list[int], logits: Tensor, target: Tensor, seed: int, **options: Any) -> Tensor:
    return AGCLLoss(counts, **options)(logits, target, generator=torch.Generator().manual_seed(seed))


def agcl_tolerance(place: Place, dtype: torch.dtype, given: Mapping[str, Any]) -> tuple[float, float]:
    """The noise is exact to 4e-7; the paper's is as wide as log n."""
    loss, gradient = tolerances(dtype)
    noise = 4e-7 * given["scale"] * given["noise_mul"] * (14 if given["variant"] == "paper" else 1)
    return loss + 4 * noise, gradient + 4 * noise


def agcl_saturates(logits: Tensor, target: Tensor, scale: float, **_: Any) -> Tensor:
    own = logits.gather(1, target.long()[:, None])
    return (scale * (own - logits.amax(1, keepdim=True)) < -1e4).squeeze(1)


reductions = st.sampled_from(("mean", "sum", "none"))
AGCL = Entry(
    name="agcl_loss",
    arguments=with_options(
        seed=d.seeds,
        scale=d.number(0.1, 50, 20.0),
        margin=d.number(0, 1, 0.1),
        noise_mul=d.number(0, 2, 0.5),
        gamma_pos=d.number(0, 4, 1.0),
        gamma_neg=d.number(0, 8, 4.0),
        label_smoothing=d.number(0, 0.9, 0.1),
        variant=st.sampled_from(("official", "paper")),
        reduction=reductions,
    ),
    run=run_agcl,
    gradients=("logits",),
    tolerance=agcl_tolerance,
    unclear=agcl_saturates,
    unit=lambda given: 0.2 * given["scale"],
    triton_weight=0.05,
    weight=0.6,
)


def run_bce(counts: list[int], logits: Tensor, target: Tensor, **options: Any) -> Tensor:
    return BalancedBCELoss(counts, **options)(logits, target)


BCE = Entry(
    name="balanced_bce_loss",
    arguments=with_options(
        least=2,
        tau=d.number(-2, 2, 1.0, 0.0),
        label_smoothing=d.number(0, 0.9, 0.1),
        reduction=reductions,
        target_threshold=st.none() | st.sampled_from((0.01, 0.3)),
    ),
    run=run_bce,
    gradients=("logits",),
    tolerance=bce_tolerance,
    unclear=lambda logits, **_: bce_saturates(logits, torch.zeros(1)),
    loose=("without gradients",),
    triton_weight=0.05,
    weight=0.6,
)


def softmax_tolerance(place: Place, dtype: torch.dtype, given: Mapping[str, Any]) -> tuple[float, float]:
    """The shifts are float32 whatever the logits are."""
    rounding = score_rounding(given["logits"])
    return 5e-6 + rounding, 2e-5 + rounding


def of_cross_entropy(**options: Any) -> Any:
    """``with_options`` with those of ``nn.CrossEntropyLoss`` too."""

    @st.composite
    def strategy(draw: st.DrawFn, backend: str) -> dict[str, Any]:
        given = draw(with_options(extremes=None, **options)(backend))
        return given | draw(cross_entropy_options(*given["logits"].shape))

    return strategy


def run_logit_adjusted(counts: list[int], logits: Tensor, target: Tensor, **options: Any) -> Tensor:
    return LogitAdjustedLoss(counts, **options)(logits, target)


def plain_logit_adjusted(counts: list[int], logits: Tensor, target: Tensor, tau: float, **options: Any) -> Tensor:
    return cross_entropy(logits, target, tau * (torch.tensor(counts).double() / sum(counts)).log(), **options)


LOGIT_ADJUSTED = Entry(
    name="logit_adjusted_loss",
    arguments=of_cross_entropy(tau=d.number(-2, 2, 1.0, 0.0)),
    run=run_logit_adjusted,
    reference=plain_logit_adjusted,
    row_by_row=("target",),
    gradients=("logits",),
    tolerance=softmax_tolerance,
    size=largest_weight,
    unit=weighted_unit,
    loose=("without gradients",),
    unclear=cross_entropy_saturates,
    triton_weight=0.05,
    weight=0.5,
)


def run_compensation(counts: list[int], logits: Tensor, target: Tensor, **options: Any) -> Tensor:
    return CompensationLoss(counts, **options)(logits, target)


def plain_compensation(
    counts: list[int], logits: Tensor, target: Tensor, stage: int, rho: float, **options: Any
) -> Tensor:
    n = torch.tensor(counts).double()
    alpha = torch.ones_like(n)
    if stage == 2:
        alpha = torch.where((n >= 20) & (n <= 100), rho, 1 - rho).double()
    if stage == 3:
        order = n.argsort()
        alpha[order] = n[order.flip(0)] / n.sum()
    return cross_entropy(logits, target, -alpha.log(), **options)


COMPENSATION = Entry(
    name="compensation_loss",
    arguments=of_cross_entropy(stage=st.sampled_from((1, 2, 3)), rho=d.number(0.05, 0.95, 0.8)),
    run=run_compensation,
    reference=plain_compensation,
    row_by_row=("target",),
    gradients=("logits",),
    tolerance=softmax_tolerance,
    size=largest_weight,
    unit=weighted_unit,
    loose=("without gradients",),
    unclear=cross_entropy_saturates,
    triton_weight=0.05,
    weight=0.5,
)


LAYER = ("features", "layer_weight", "layer_bias")


def of_layer(*, least: int = 1, biased: bool = True, soft: bool = True, **options: Any) -> Any:
    """A strategy of class counts, a linear layer, targets, the rows of a block, and options."""

    @st.composite
    def strategy(draw: st.DrawFn, backend: str) -> dict[str, Any]:
        rows, width = draw(st.sampled_from(BATCHES)), draw(st.sampled_from((2, 3, 8, 17, 64)))
        classes = draw(st.sampled_from([n for n in (1, 2, 3, 7, 10, 31, 100) if n >= least]))
        common = {"dtypes": [draw(st.sampled_from((torch.float32, torch.float64)))], "extremes": None}
        bias = d.floats((classes,), broken=(), **common)
        given = draw(cross_entropy_options(rows, classes))
        labels, ignored = draw(d.labels_and_ignored(rows, classes))
        return {
            "counts": draw(class_counts(classes)),
            "features": draw(d.floats((rows, width), scales=(1.0, 1.0, 30.0), **common)),
            "layer_weight": draw(d.floats((classes, width), scales=(1.0, 0.1), broken=(), **common)),
            "layer_bias": draw(st.none() | bias) if biased else None,
            "target": given["target"] if soft else labels,
            "ignore_index": given["ignore_index"] if soft else ignored,
            "reduction": given["reduction"],
            "block": draw(st.sampled_from((1, 2, 5, 128))),
            **{name: given[name] if option is None else draw(option) for name, option in options.items()},
        }

    return strategy


def run_linear(
    make: Callable[..., Any], counts: list[int], features: Tensor, layer_weight: Tensor, layer_bias: Tensor | None,
    target: Tensor, block: int, seed: int | None = None, **options: Any,
) -> Tensor:  # fmt: skip
    noise = {} if seed is None else {"generator": torch.Generator().manual_seed(seed)}
    with mock.patch.object(blocks, "FEWEST", block), mock.patch.dict(blocks.BUDGET, cpu=1):
        return make(counts, **options)(features, layer_weight, layer_bias, target, **noise)


def layer_unit(given: Mapping[str, Any]) -> float:
    """The gradients are products with features and weight; a mean has a share of each row, not of each class."""
    sizes = [given[name].make()[0].double().nan_to_num(0, 0, 0).norm(dim=1) for name in LAYER[:2]]
    rows, classes = map(len, sizes)
    of_loss = weighted_unit({"weight": None} | given)
    return of_loss * max(1, *(size.max().item() for size in sizes)) * max(1, classes / rows)


def cosine_unit(given: Mapping[str, Any]) -> float:
    """Both are divided by their lengths."""
    sizes = [given[name].make()[0].double().norm(dim=1) for name in LAYER[:2]]
    rows, classes = map(len, sizes)
    shortest = torch.cat(sizes).nan_to_num(1, 1).clamp(min=1e-6).min().item()
    return 0.2 * given["scale"] * max(1, classes / rows) / min(1, shortest)


def linear(name: str, make: Callable[..., Any], arguments: Any, **others: Any) -> Entry:
    return Entry(
        name=f"linear_{name}_loss",
        arguments=arguments,
        run=lambda **given: run_linear(make, **given),
        loose=("contiguous arguments", "without gradients", "two threads"),  # the products are PyTorch's
        gradients=LAYER,
        size=lambda given: largest_weight({"weight": None} | given),
        triton_weight=0.05,
        weight=0.4,
        **{"tolerance": bce_tolerance, "unit": layer_unit} | others,
    )


from_options = dict.fromkeys(("weight", "label_smoothing"))
LINEAR = [
    linear(
        "cross_entropy",
        lambda counts, weight, **options: LinearCrossEntropyLoss(weight, **options),
        of_layer(**from_options),
    ),
    linear("logit_adjusted", LinearLogitAdjustedLoss, of_layer(tau=d.number(-2, 2, 1.0, 0.0), **from_options)),
    linear(
        "compensation",
        LinearCompensationLoss,
        of_layer(stage=st.sampled_from((1, 2, 3)), rho=d.number(0.05, 0.95, 0.8), **from_options),
    ),
    linear(
        "balanced_bce",
        LinearBalancedBCELoss,
        of_layer(least=2, tau=d.number(-2, 2, 1.0, 0.0), label_smoothing=None),
    ),
    linear(
        "agcl",
        LinearAGCLLoss,
        of_layer(
            biased=False, soft=False, seed=d.seeds, scale=d.number(0.1, 50, 20.0), margin=d.number(0, 1, 0.1),
            noise_mul=d.number(0, 2, 0.5), gamma_pos=d.number(0, 4, 1.0), gamma_neg=d.number(0, 8, 4.0),
            variant=st.sampled_from(("official", "paper")),
        ),
        tolerance=agcl_tolerance,
        unit=cosine_unit,
    ),
]  # fmt: skip


@st.composite
def proco_arguments(draw: st.DrawFn, backend: str) -> dict[str, Any]:
    classes, width = draw(st.sampled_from(CLASSES)), draw(st.sampled_from(WIDTHS))
    seen = draw(st.lists(st.sampled_from(BATCHES), max_size=3))
    rows = draw(st.sampled_from(BATCHES))
    return {
        "num_classes": classes,
        "width": width,
        "seen": [draw(d.floats((n, width), fills=("unit",), extremes=None)) for n in seen],
        "seen_labels": [draw(d.labels(n, classes)) for n in seen],
        "features": draw(d.floats((rows, width), fills=("unit",), extremes=None)),
        "labels": draw(d.labels(rows, classes)),
        "temperature": draw(d.number(0.02, 1, 0.1, 0.07)),
        "counted": draw(st.booleans()),
        "epochs": draw(st.booleans()),
    }


def run_proco(
    num_classes: int, width: int, seen: list[Tensor], seen_labels: list[Tensor], features: Tensor, labels: Tensor,
    temperature: float, counted: bool, epochs: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    counts = list(range(1, num_classes + 1)) if counted else None
    loss = ProCoLoss(num_classes, width, temperature=temperature, class_counts=counts)
    for batch, of in zip(seen, seen_labels, strict=True):
        loss.update(batch, of)
        if epochs:
            loss.start_epoch()
    return loss(features, labels), loss.logits(features)


def proco_tolerance(place: Place, dtype: torch.dtype, given: Mapping[str, Any]) -> tuple[float, float]:
    """The statistics are float32 whatever the features are."""
    loss, gradient = tolerances(torch.float32)
    return 10 * loss * max(1, 0.1 / given["temperature"]), 10 * gradient


PROCO = Entry(
    name="proco_loss",
    arguments=proco_arguments,
    run=run_proco,
    gradients=("features",),
    tolerance=proco_tolerance,
    unit=lambda given: 1 / given["temperature"],
    rounding=dict.fromkeys(("seen", "features"), 2.0**-24),
    loose=("contiguous arguments", "two threads"),  # the products are PyTorch's
    triton_weight=0.05,
)


@st.composite
def queued(draw: st.DrawFn, backend: str) -> dict[str, Any]:
    """A queue with what was put into it."""
    classes, width = draw(st.sampled_from(CLASSES)), draw(st.sampled_from(WIDTHS))
    batches = draw(st.lists(st.sampled_from(BATCHES), max_size=3))
    dtype = draw(st.sampled_from(d.FLOATS))
    return {
        "width": width,
        "size": draw(st.sampled_from((1, 2, 7, 16, 17, 64, 100))),
        "num_classes": draw(st.sampled_from((classes, None))),
        "dtype": dtype,
        "put": [draw(d.floats((n, width), fills=("unit",), extremes=None)) for n in batches],
        "put_labels": [draw(d.labels(n, classes)) for n in batches],
    }


@st.composite
def dscl_arguments(draw: st.DrawFn, backend: str) -> dict[str, Any]:
    given = draw(queued(backend))
    rows = draw(st.sampled_from(BATCHES))
    shape, classes = (rows, given["width"]), given["num_classes"] or 7
    return given | {
        "query": draw(d.floats(shape, fills=("unit",), extremes=None)),
        "key": draw(d.floats(shape, fills=("unit",), extremes=None)),
        "labels": draw(d.labels(rows, classes)),
        "temperature": draw(d.number(0.03, 2, 0.07)),
    }


def the_queue(
    width: int, size: int, num_classes: int | None, dtype: torch.dtype, put: list[Tensor], put_labels: list[Tensor]
) -> MemoryQueue:
    queue = MemoryQueue(width, size, num_classes=num_classes, dtype=dtype)
    for keys, labels in zip(put, put_labels, strict=True):
        queue.enqueue(keys, labels)
    return queue


def contents(
    width: int, size: int, num_classes: int | None, dtype: torch.dtype, put: list[Tensor], put_labels: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """What must be in it: the last keys, in the queue's dtype; those that are not finite as zeros."""
    keys = torch.cat([*put, torch.zeros(0, width, dtype=torch.float64)])[-size:].detach().to(dtype).double()
    labels = torch.cat([*(x.long() for x in put_labels), torch.zeros(0, dtype=torch.int64)])[-size:]
    return keys.where(keys.isfinite().all(1, keepdim=True), 0), labels


QUEUE = ("width", "size", "num_classes", "dtype", "put", "put_labels")


def split(given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    return {name: given[name] for name in QUEUE}, {name: x for name, x in given.items() if name not in QUEUE}


def run_dscl(loss: type[SupConQueueLoss], **given: Any) -> Tensor:
    of_queue, given = split(given)
    temperature = given.pop("temperature")
    return loss(temperature=temperature)(**given, queue=the_queue(**of_queue))


def plain_dscl(loss: Any, **given: Any) -> Tensor:
    of_queue, given = split(given)
    keys, labels = contents(**of_queue)
    query, key = given["query"], given["key"]
    return loss(query, key, given["labels"].long(), keys, labels, temperature=given["temperature"]).mean()


def contrastive_tolerance(place: Place, dtype: torch.dtype, given: Mapping[str, Any]) -> tuple[float, float]:
    """A product of the rows is rounded before it cancels; as ``losses/test_dscl.py`` has it. In the interpreter float16
    products too."""
    arrays = [value for name in ("query", "cropped", "pooled") if (value := given.get(name)) is not None]
    dtypes = {array.dtype for array in arrays}
    if dtypes == {torch.float64} and place.backend == "native":
        return 1e-10 / given["temperature"], 1e-10
    if torch.float16 in dtypes and place.backend == "triton":
        return 2e-3 / given["temperature"], 1e-2
    return 1e-6 / given["temperature"], 2e-5


DSCL = [
    Entry(
        name=name,
        arguments=dscl_arguments,
        run=lambda loss=loss, **given: run_dscl(loss, **given),
        reference=lambda plain=plain, **given: plain_dscl(plain, **given),
        gradients=("query", "key"),
        tolerance=contrastive_tolerance,
        unit=lambda given: 1 / given["temperature"],
        rounding={"put": 0},  # the queue rounds them to its dtype
        loose=("contiguous arguments", "two threads"),
        triton_weight=0.05,
        weight=0.6,
    )
    for name, loss, plain in (
        ("dscl_loss", DSCLLoss, published.dscl),
        ("supcon_queue_loss", SupConQueueLoss, published.supcon),
    )
]


@st.composite
def pbsd_arguments(draw: st.DrawFn, backend: str) -> dict[str, Any]:
    given = draw(queued(backend))
    rows, patches, width = draw(st.sampled_from(BATCHES)), draw(st.sampled_from((1, 2, 5))), given["width"]
    return given | {
        "pooled": draw(d.floats((rows, patches, width), fills=("unit",), extremes=None)),
        "cropped": draw(d.floats((rows, patches, width), fills=("unit",), extremes=None)),
        "key": draw(d.floats((rows, width), fills=("unit",), extremes=None)),
        "temperature": draw(d.number(0.03, 2, 0.07)),
    }


def run_pbsd(**given: Any) -> Tensor:
    of_queue, given = split(given)
    temperature = given.pop("temperature")
    return PBSDLoss(temperature=temperature)(**given, queue=the_queue(**of_queue))


def plain_pbsd(**given: Any) -> Tensor:
    of_queue, given = split(given)
    keys, _ = contents(**of_queue)
    return published.pbsd(
        given["pooled"], given["cropped"], given["key"], keys, temperature=given["temperature"]
    ).mean()


PBSD = Entry(
    name="pbsd_loss",
    arguments=pbsd_arguments,
    run=run_pbsd,
    reference=plain_pbsd,
    gradients=("cropped",),
    tolerance=contrastive_tolerance,
    unit=lambda given: 1 / given["temperature"],
    rounding={"put": 0},
    loose=("contiguous arguments", "two threads"),
    triton_weight=0.05,
    weight=0.6,
)


def run_queue(**given: Any) -> tuple[Tensor, ...]:
    """Its content in the order of its labels and first values, and each class's sum and number."""
    queue = the_queue(**given)
    keys, labels = queue.keys[: len(queue)].double(), queue.labels[: len(queue)]
    sums, numbers = queue.of_class(torch.arange(queue.num_classes or 300))
    return *ordered(keys, labels), sums, numbers


def plain_queue(**given: Any) -> tuple[Tensor, ...]:
    keys, labels = contents(**given)
    classes = given["num_classes"] or 300
    sums = keys.new_zeros(classes, given["width"]).index_add_(0, labels, keys)
    return *ordered(keys, labels), sums, labels.bincount(minlength=classes).double()


def ordered(keys: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    order = sorted(range(len(keys)), key=lambda i: (int(labels[i]), keys[i].tolist()))
    return keys[order], labels[order]


MEMORY_QUEUE = Entry(
    name="memory_queue",
    arguments=queued,
    run=run_queue,
    reference=plain_queue,
    rounding={"put": 0},
    tolerance=lambda place, dtype, given: (1e-12, 0),
    triton_weight=0,
    weight=0.4,
)

globals().update(fuzz(AGCL, BCE, LOGIT_ADJUSTED, COMPENSATION, *LINEAR, PROCO, *DSCL, PBSD, MEMORY_QUEUE))
