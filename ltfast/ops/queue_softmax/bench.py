"""`queue_softmax`, beside attention with the keys as values."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ltfast.ops.core.bench import Case, Growth, Step, Unavailable, Work, backward, call, compilers
from ltfast.ops.core.torch_internals import gpu_attention
from ltfast.ops.queue_softmax import queue_softmax

TEMPERATURE = 0.07
SIZES = {
    "small": (32, 65536, 128),
    "imagenet-lt": (256, 65536, 128),
    "large": (4096, 65536, 128),
    "million": (256, 2**20, 128),
}
BACKENDS = {
    "cpu": {"flash": SDPBackend.FLASH_ATTENTION, "math": SDPBackend.MATH},
    "cuda": {
        "flash": SDPBackend.FLASH_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "math": SDPBackend.MATH,
    },
}
SPLIT = {"cpu": (), "cuda": ("flash", "cudnn")}
BLOCKS, ROWS = 512, 128  # blocks that fill a large GPU some four times, and the rows of a block of attention


def unit(*shape: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    return F.normalize(torch.randn(*shape, device=device), dim=-1).to(dtype)


def attention(backend: SDPBackend) -> Callable[..., Tensor]:
    """The mean alone: PyTorch gives no log-sum-exp."""

    def mean(queries: Tensor, keys: Tensor) -> Tensor:
        q, k = queries[None, None], keys[None, None]
        with only_where_possible(), sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, k, scale=1 / TEMPERATURE)[0, 0]

    return mean


def split_attention(attend: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    """The log-sum-exp and the mean, from attention to parts of the keys as a batch. Attention shares the rows among the
    blocks of a GPU, but not the keys, so that few rows leave most of it idle.

    Args:
        attend: the log-sum-exp and the mean of queries (S, 1, B, D) and keys (S, 1, M, D) at a temperature.
    """

    def both(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        rows, (length, width) = len(queries), keys.shape
        parts = math.gcd(length, max(BLOCKS // math.ceil(rows / ROWS), 1))
        with only_where_possible():
            lse, mean = attend(queries.repeat(parts, 1, 1, 1), keys.view(parts, 1, -1, width), temperature=TEMPERATURE)
        lse = lse.reshape(parts, rows)
        weights = lse.softmax(0)[..., None]
        return lse.logsumexp(0), (weights * mean.view(parts, rows, width)).sum(0)

    return both


@contextmanager
def only_where_possible() -> Iterator[None]:
    """Attention raises RuntimeError where a backend has no kernel for the dtype, size or device."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise Unavailable(str(error)) from error


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
        **{
            f"attention, {name}, split": partial(split_attention, partial(gpu_attention, name))
            for name in SPLIT[device.type]
        },
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
        yield forward(device, "million", 4096, 2**20, 128, torch.bfloat16)
        yield forward(device, "16-million", 4096, 2**24, 128, torch.bfloat16)


def growth(device: torch.device) -> Iterator[Growth]:
    yield Growth(
        "queue_softmax",
        {"keys": 65536, "batch": 64, "width": 128},
        {"keys": (4096, 16384, 65536, 262144), "batch": (4, 16, 64, 256), "width": (32, 64, 128, 256, 512)},
        lambda keys, batch, width: gradient(device, "growth", batch, keys, width, torch.float32),
    )
