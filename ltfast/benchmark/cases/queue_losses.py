"""The losses over a memory queue."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ltfast.benchmark.cases import published_dscl as published
from ltfast.losses import DSCLLoss, MemoryQueue, PBSDLoss, SupConQueueLoss
from ltfast.ops.core.bench import Bench, Case, Work, backward, compilers
from ltfast.ops.queue_softmax.bench import SIZES, TEMPERATURE, unit

CLASSES, PATCHES = 1000, 5
PATCH_SIZES = {
    "imagenet-lt": (64, 65536, 128),
    "large": (1024, 65536, 128),
    "million": (64, 2**20, 128),
}
LOSSES = {"dscl": (DSCLLoss, published.dscl), "supcon": (SupConQueueLoss, published.supcon)}


def full_queue(length: int, width: int, device: torch.device, dtype: torch.dtype) -> MemoryQueue:
    queue = MemoryQueue(width, length, num_classes=CLASSES, dtype=dtype).to(device)
    labels = torch.randint(CLASSES, (length,), device=device)
    queue.enqueue(unit(length, width, device=device, dtype=dtype), labels)
    return queue


def of_tensors(make: Callable[[], Callable[..., Tensor]]) -> Callable[..., Tensor]:
    """A published loss of a set of inputs, which ends in the queue as ltfast takes it, its tensors before it."""
    loss = make()
    return lambda *inputs: loss(*inputs[:-1])


def metric_learning_supcon() -> Callable[..., Tensor]:
    """The same number from pytorch-metric-learning; the pairs are part of each step, as labels change."""
    from pytorch_metric_learning import distances, losses
    from pytorch_metric_learning.utils import loss_and_miner_utils as utils

    # the features have length 1 already
    loss = losses.SupConLoss(TEMPERATURE, distance=distances.DotProductSimilarity(normalize_embeddings=False))

    def value(query: Tensor, key: Tensor, labels: Tensor, keys: Tensor, queue_labels: Tensor) -> Tensor:
        everything, everyone = torch.cat([query, key, keys]), torch.cat([labels, labels, queue_labels])
        pairs = utils.get_all_pairs_indices(labels, everyone)
        pairs = utils.remove_self_comparisons(pairs, torch.arange(len(query), device=query.device), len(everything))
        return loss(query, labels, pairs, everything, everyone)

    return value


def contrastive(
    device: torch.device, op: str, shape: str, rows: int, length: int, width: int, dtype: torch.dtype
) -> Case:
    """The gradient in the queries, which are also keys."""

    def inputs() -> tuple[Any, ...]:
        queue = full_queue(length, width, device, dtype)
        query, key = (unit(rows, width, device=device, dtype=dtype) for _ in range(2))
        labels = torch.randint(CLASSES, (rows,), device=device)
        return query.requires_grad_(), key, labels, queue.keys, queue.labels, queue

    loss, function = LOSSES[op]
    ours = loss(temperature=TEMPERATURE)

    def theirs(*inputs: Tensor) -> Tensor:
        return function(*inputs, temperature=TEMPERATURE).mean()

    peers: dict[str, Callable[[], Callable[..., Tensor]]] = {"eager": lambda: theirs, **compilers(theirs, device)}
    if op == "supcon":
        peers["pytorch-metric-learning"] = metric_learning_supcon
    keys = 2 * rows + length
    return Case(
        op,
        shape,
        f"{rows} x {length} x {width}",
        dtype,
        Work(
            bytes=dtype.itemsize * width * (3 * rows + length),
            # logits and the gradient in the queries as anchors; and in the queries as keys
            flops=2 * rows * width * (2 * keys + rows),
            exps=rows * keys,
        ),
        inputs,
        {
            "ltfast": backward(lambda: lambda query, key, labels, *queue: ours(query, key, labels, queue[-1])),
            **{name: backward(partial(of_tensors, make)) for name, make in peers.items()},
        },
    )


def pbsd(device: torch.device, shape: str, images: int, length: int, width: int, dtype: torch.dtype) -> Case:
    """The gradient in the cropped patches."""

    def inputs() -> tuple[Any, ...]:
        queue = full_queue(length, width, device, dtype)
        cropped, pooled = (unit(images, PATCHES, width, device=device, dtype=dtype) for _ in range(2))
        key = unit(images, width, device=device, dtype=dtype)
        return cropped.requires_grad_(), pooled, key, queue.keys, queue

    ours = PBSDLoss(temperature=TEMPERATURE)

    def theirs(cropped: Tensor, pooled: Tensor, key: Tensor, keys: Tensor) -> Tensor:
        return published.pbsd(pooled, cropped, key, keys, temperature=TEMPERATURE).mean()

    peers: dict[str, Callable[[], Callable[..., Tensor]]] = {"eager": lambda: theirs, **compilers(theirs, device)}
    patches = images * PATCHES
    return Case(
        "pbsd",
        shape,
        f"{images} of {PATCHES} patches x {length} x {width}",
        dtype,
        Work(
            bytes=dtype.itemsize * width * (3 * patches + images + length),
            # logits of both, and the gradient. Ours has a fourth product, or it would have to keep the probabilities
            flops=3 * 2 * patches * length * width,
            exps=2 * patches * length,
        ),
        inputs,
        {
            "ltfast": backward(lambda: lambda cropped, pooled, key, _, queue: ours(pooled, cropped, key, queue)),
            **{name: backward(partial(of_tensors, make)) for name, make in peers.items()},
        },
    )


def contrastive_cases(loss: str, device: torch.device) -> Iterator[Case]:
    for shape, size in SIZES.items():
        yield contrastive(device, loss, shape, *size, torch.float32)
    if loss == "dscl":
        yield contrastive(device, loss, "large", *SIZES["large"], torch.bfloat16)


def pbsd_cases(device: torch.device) -> Iterator[Case]:
    for shape, size in PATCH_SIZES.items():
        yield pbsd(device, shape, *size, torch.float32)


BENCHES = {loss: Bench(partial(contrastive_cases, loss)) for loss in LOSSES} | {"pbsd": Bench(pbsd_cases)}
