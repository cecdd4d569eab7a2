"""The losses over a memory queue beside their published forms and pytorch-metric-learning; the op beside attention.

Bytes are those of the queue's keys read once and of the queries. pytorch-metric-learning is optional.
"""

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import dscl_baseline
from ltfast.losses import DSCLLoss, MemoryQueue, PBSDLoss, SupConQueueLoss
from ltfast.ops import queue_softmax

CLASSES, LENGTH, WIDTH, TEMPERATURE = 1000, 65536, 128, 0.07


def unit(*shape: int, device: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, device=device, dtype=dtype), dim=-1)


def full_queue(device: str) -> MemoryQueue:
    queue = MemoryQueue(WIDTH, LENGTH, num_classes=CLASSES).to(device)
    queue.enqueue(unit(LENGTH, WIDTH, device=device), torch.randint(CLASSES, (LENGTH,), device=device))
    return queue


def batch(rows: int, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    query, key = unit(rows, WIDTH, device=device).requires_grad_(), unit(rows, WIDTH, device=device)
    return query, key, torch.randint(CLASSES, (rows,), device=device)


@pytest.mark.parametrize("implementation", ["ltfast", "eager", "torch.compile"])
@pytest.mark.parametrize("rows", [32, 256])
def test_dscl(step, device, rows, implementation):
    """The gradient in the queries, which are also keys."""
    queue, (query, key, labels), ours = full_queue(device), batch(rows, device), DSCLLoss(temperature=TEMPERATURE)
    compiled = torch.compile(dscl_baseline.dscl, fullgraph=True, dynamic=False)
    calls = {
        "ltfast": lambda: ours(query, key, labels, queue),
        "eager": lambda: dscl_baseline.dscl(query, key, labels, queue.keys, queue.labels).mean(),
        "torch.compile": lambda: compiled(query, key, labels, queue.keys, queue.labels).mean(),
    }

    def run():
        query.grad = None
        calls[implementation]().backward()

    name = f"dscl {rows} x {LENGTH} x {WIDTH} float32"
    step(run, group=name, implementation=implementation, moved=4 * WIDTH * (LENGTH + rows))


@pytest.mark.parametrize("implementation", ["ltfast", "eager", "torch.compile"])
@pytest.mark.parametrize("rows", [64, 256])
def test_pbsd(step, device, rows, implementation):
    """Ours multiplies by the queue four times a pair of patches, the published three times: the weighted means, without
    which the patches' probabilities would have to be kept."""
    patches = 5
    queue, key, ours = full_queue(device), unit(rows, WIDTH, device=device), PBSDLoss(temperature=TEMPERATURE)
    pooled = unit(rows, patches, WIDTH, device=device)
    cropped = unit(rows, patches, WIDTH, device=device).requires_grad_()
    compiled = torch.compile(dscl_baseline.pbsd, fullgraph=True, dynamic=False)
    calls = {
        "ltfast": lambda: ours(pooled, cropped, key, queue),
        "eager": lambda: dscl_baseline.pbsd(pooled, cropped, key, queue.keys).mean(),
        "torch.compile": lambda: compiled(pooled, cropped, key, queue.keys).mean(),
    }

    def run():
        cropped.grad = None
        calls[implementation]().backward()

    name = f"pbsd {rows} of {patches} patches x {LENGTH} x {WIDTH} float32"
    step(run, group=name, implementation=implementation, moved=4 * WIDTH * (LENGTH + 2 * rows * patches))


def metric_learning_supcon(query, key, labels, queue):
    """The same number from pytorch-metric-learning; the pairs are part of each step, as labels change."""
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    utils = pytest.importorskip("pytorch_metric_learning.utils.loss_and_miner_utils")
    distances = pytest.importorskip("pytorch_metric_learning.distances")
    # the features have length 1 already
    loss = losses.SupConLoss(TEMPERATURE, distance=distances.DotProductSimilarity(normalize_embeddings=False))
    itself = torch.arange(len(query), device=query.device)

    def value():
        everything = torch.cat([query, key, queue.keys])
        everyone = torch.cat([labels, labels, queue.labels])
        pairs = utils.get_all_pairs_indices(labels, everyone)
        pairs = utils.remove_self_comparisons(pairs, itself, len(everything))
        return loss(query, labels, pairs, everything, everyone)

    return value


@pytest.mark.parametrize("implementation", ["ltfast", "eager", "torch.compile", "pytorch-metric-learning"])
def test_supcon(step, device, implementation):
    rows = 256
    queue, (query, key, labels) = full_queue(device), batch(rows, device)
    ours = SupConQueueLoss(temperature=TEMPERATURE)
    compiled = torch.compile(dscl_baseline.supcon, fullgraph=True, dynamic=False)
    calls = {
        "ltfast": lambda: ours(query, key, labels, queue),
        "eager": lambda: dscl_baseline.supcon(query, key, labels, queue.keys, queue.labels).mean(),
        "torch.compile": lambda: compiled(query, key, labels, queue.keys, queue.labels).mean(),
    }
    if implementation == "pytorch-metric-learning":
        calls[implementation] = metric_learning_supcon(query, key, labels, queue)
        torch.testing.assert_close(calls["ltfast"](), calls[implementation](), rtol=1e-5, atol=1e-5)

    def run():
        query.grad = None
        calls[implementation]().backward()

    name = f"supcon {rows} x {LENGTH} x {WIDTH} float32"
    step(run, group=name, implementation=implementation, moved=4 * WIDTH * (LENGTH + rows))


@pytest.mark.parametrize("implementation", ["ltfast", "pytorch-metric-learning"])
def test_supcon_step(step, device, implementation):
    """The loss and the queue's update, as people write it. ``CrossBatchMemory`` takes the keys in first, so that they
    push out the oldest ones before the loss and not after it, and the batch's other queries are not among the keys."""
    rows = 256
    queue, (query, key, labels) = full_queue(device), batch(rows, device)
    ours = SupConQueueLoss(temperature=TEMPERATURE)
    if implementation == "pytorch-metric-learning":
        losses = pytest.importorskip("pytorch_metric_learning.losses")
        theirs = losses.CrossBatchMemory(losses.SupConLoss(TEMPERATURE), WIDTH, LENGTH).to(device)
        theirs.add_to_memory(queue.keys, queue.labels, LENGTH)
        is_key = torch.arange(2 * rows, device=device) >= rows

    def run():
        query.grad = None
        if implementation == "ltfast":
            ours(query, key, labels, queue).backward()
            queue.enqueue(key, labels)
        else:
            theirs(torch.cat([query, key]), labels.repeat(2), enqueue_mask=is_key).backward()

    name = f"supcon step {rows} x {LENGTH} x {WIDTH} float32"
    step(run, group=name, implementation=implementation, moved=4 * WIDTH * (LENGTH + 2 * rows))


BACKENDS = {
    "attention, flash": SDPBackend.FLASH_ATTENTION,
    "attention, cudnn": SDPBackend.CUDNN_ATTENTION,
    "attention, efficient": SDPBackend.EFFICIENT_ATTENTION,
}
LARGE = [(4096, 2**20, name) for name in ("ltfast", *BACKENDS, "matmul")] + [(4096, 2**24, "ltfast")]


@pytest.mark.gpu
@pytest.mark.parametrize(("rows", "length", "implementation"), LARGE)
def test_queue_softmax(step, device, rows, length, implementation):
    """The forward alone, beside attention with the keys as values and, the ceiling, one product of as many flops."""
    queries = unit(rows, WIDTH, device=device, dtype=torch.bfloat16)
    keys = unit(length, WIDTH, device=device, dtype=torch.bfloat16)
    if implementation == "matmul":  # 4 B M D flops
        left = torch.randn(2 * rows, length * WIDTH // (2 * rows), device=device, dtype=torch.bfloat16)
        right = torch.randn_like(left)

    def attention():
        with sdpa_kernel(BACKENDS[implementation]):
            q, k = queries[None, None], keys[None, None]
            return F.scaled_dot_product_attention(q, k, k, scale=1 / TEMPERATURE)

    def run():
        if implementation == "ltfast":
            return queue_softmax(queries, keys, temperature=TEMPERATURE)
        return left @ right.T if implementation == "matmul" else attention()

    try:
        run()
    except RuntimeError as error:
        if "No available kernel" not in str(error) and "No viable backend" not in str(error):
            raise
        pytest.skip(f"{implementation}: {error}")
    name = f"queue_softmax {rows} x {length} x {WIDTH} bfloat16, forward"
    step(run, group=name, implementation=implementation, moved=2 * WIDTH * (length + rows))
