"""The losses over a memory queue, and `queue_softmax` itself beside attention with the keys as values."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ltfast.benchmark.case import Case, Growth, Step, Unavailable, Work, backward, call, compilers
from ltfast.benchmark.cases import published_dscl as published
from ltfast.losses import DSCLLoss, MemoryQueue, PBSDLoss, SupConQueueLoss
from ltfast.ops import queue_softmax

CLASSES, PATCHES, TEMPERATURE = 1000, 5, 0.07
SIZES = {
    "small": (32, 65536, 128),
    "imagenet-lt": (256, 65536, 128),
    "large": (4096, 65536, 128),
    "million": (256, 2**20, 128),
}
PATCH_SIZES = {
    "imagenet-lt": (64, 65536, 128),
    "large": (1024, 65536, 128),
    "million": (64, 2**20, 128),
}
LOSSES = {"dscl": (DSCLLoss, published.dscl), "supcon": (SupConQueueLoss, published.supcon)}
BACKENDS = {
    "cpu": {"flash": SDPBackend.FLASH_ATTENTION, "math": SDPBackend.MATH},
    "cuda": {
        "flash": SDPBackend.FLASH_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
    },
}


def unit(*shape: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    return F.normalize(torch.randn(*shape, device=device), dim=-1).to(dtype)


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


def attention(backend: SDPBackend) -> Callable[..., Tensor]:
    """The mean alone: PyTorch gives no log-sum-exp."""

    def mean(queries: Tensor, keys: Tensor) -> Tensor:
        q, k = queries[None, None], keys[None, None]
        try:
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, k, scale=1 / TEMPERATURE)[0, 0]
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # the backend has no kernel for this dtype, size or device
            raise Unavailable(str(error)) from error

    return mean


def forward(device: torch.device, shape: str, rows: int, length: int, width: int, dtype: torch.dtype) -> Case:
    """The log-sum-exp and the mean."""

    def plain(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        logits = queries @ keys.T / TEMPERATURE
        return logits.logsumexp(1), logits.softmax(1) @ keys

    makes: dict[str, Callable[[], Callable[..., object]]] = {
        "ltfast": lambda: partial(queue_softmax, temperature=TEMPERATURE),
        "eager": lambda: plain,
        **compilers(plain, device),
        **{f"attention, {name}": partial(attention, backend) for name, backend in BACKENDS[device.type].items()},
    }
    steps = {name: call(make) for name, make in makes.items()}
    return op(device, shape, "forward", rows, length, width, dtype, steps)


def gradient(device: torch.device, shape: str, rows: int, length: int, width: int, dtype: torch.dtype) -> Case:
    """The log-sum-exp, and its gradient in the queries; attention's is that of the mean, which takes more products."""

    def plain(queries: Tensor, keys: Tensor) -> Tensor:
        return (queries @ keys.T / TEMPERATURE).logsumexp(1).sum()

    def of_mean(backend: SDPBackend) -> Callable[..., Tensor]:
        mean = attention(backend)
        return lambda queries, keys: mean(queries, keys).sum()

    makes: dict[str, Callable[[], Callable[..., Tensor]]] = {
        "ltfast": lambda: lambda queries, keys: queue_softmax(queries, keys, temperature=TEMPERATURE)[0].sum(),
        "eager": lambda: plain,
        **compilers(plain, device),
        **{f"attention, {name}": partial(of_mean, backend) for name, backend in BACKENDS[device.type].items()},
    }
    steps = {name: backward(make) for name, make in makes.items()}
    return op(device, shape, "forward + backward", rows, length, width, dtype, steps)


def op(
    device: torch.device,
    shape: str,
    passes: str,
    rows: int,
    length: int,
    width: int,
    dtype: torch.dtype,
    steps: Mapping[str, Callable[[], Step]],
) -> Case:
    def inputs() -> tuple[Tensor, Tensor]:
        queries = unit(rows, width, device=device, dtype=dtype)
        return queries.requires_grad_(passes != "forward"), unit(length, width, device=device, dtype=dtype)

    def matmul() -> Step:
        """One product of as many flops."""
        left, right = torch.randn(2, 2 * rows, length * width // (2 * rows), device=device).to(dtype)
        return lambda _: left @ right.T

    # logits and the mean; the gradient is the mean over the temperature
    work = Work(bytes=dtype.itemsize * width * (2 * rows + length), flops=4 * rows * length * width, exps=rows * length)
    size = f"{rows} x {length} x {width}, {passes}"
    return Case("queue_softmax", shape, size, dtype, work, inputs, {**steps, "matmul": matmul})


def cases(device: torch.device) -> Iterator[Case]:
    for shape, size in SIZES.items():
        yield forward(device, shape, *size, torch.float32)
        yield gradient(device, shape, *size, torch.float32)
    for shape in ("large", "million"):  # flash and cudnn attention on a GPU are for half precision alone
        yield forward(device, shape, *SIZES[shape], torch.bfloat16)
        yield gradient(device, shape, *SIZES[shape], torch.bfloat16)
    if device.type == "cuda":
        for length in (2**20, 2**24):
            yield forward(device, "million", 4096, length, 128, torch.bfloat16)
    for loss in LOSSES:
        for shape, size in SIZES.items():
            yield contrastive(device, loss, shape, *size, torch.float32)
    yield contrastive(device, "dscl", "large", *SIZES["large"], torch.bfloat16)
    for shape, size in PATCH_SIZES.items():
        yield pbsd(device, shape, *size, torch.float32)


def growth(device: torch.device) -> Iterator[Growth]:
    yield Growth(
        "queue_softmax",
        {"keys": 65536, "batch": 64, "width": 128},
        {"keys": (4096, 16384, 65536, 262144), "batch": (4, 16, 64, 256), "width": (32, 64, 128, 256, 512)},
        lambda keys, batch, width: gradient(device, "growth", batch, keys, width, torch.float32),
    )
