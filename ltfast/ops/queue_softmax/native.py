"""The CPU path: PyTorch's own flash attention, which gives the log-sum-exp too, over the keys in parts."""

import math

import torch
from torch import Tensor

from ltfast.ops.core.tensors import accumulator
from ltfast.ops.core.torch_internals import flash_attention
from ltfast.ops.queue_softmax import merge

_BUDGET = 2**20  # values of a part that is converted, or has a mask or a matrix of its own


def queue_softmax(
    queries: Tensor, keys: Tensor, temperature: float, valid: Tensor | None, exclude: Tensor | None
) -> tuple[Tensor, Tensor]:
    keys = keys if valid is None else keys[: int(valid)]
    q = queries.detach().to(accumulator(queries.dtype)).contiguous()
    rows, width = q.shape
    columns = len(keys)
    # the columns that some row leaves out: there, and only there, a mask is needed
    low, high = _bounds(exclude, columns)
    result = q.new_full((rows,), -math.inf), torch.zeros_like(q)
    for begin, end, masked in ((0, low, False), (low, high, True), (high, columns, False)):
        size = end - begin
        if masked:
            size = max(_BUDGET // rows, 256)
        elif keys.dtype != q.dtype:
            size = max(_BUDGET // width, 256)
        for start in range(begin, end, max(size, 1)):
            part = keys.detach()[start : min(start + size, end)].to(q.dtype).contiguous()
            found = (
                _masked(q, part, temperature, exclude - start)
                if masked and exclude is not None
                else (_plain(q, part, temperature))
            )
            result = merge(result, found)
    # PyTorch's attention takes a few products that are all NaN for masked ones
    lse, mean = result
    broken = ((q - q).sum(1) + (mean - mean).sum(1)).masked_fill_(lse.isneginf(), 0)
    return lse + broken, mean + broken[:, None]


def key_gradient(
    queries: Tensor,
    keys: Tensor,
    temperature: float,
    valid: Tensor | None,
    exclude: Tensor | None,
    lse: Tensor,
    incoming: Tensor,
) -> Tensor:
    gradient = torch.zeros(keys.shape, dtype=lse.dtype)
    keys = keys if valid is None else keys[: int(valid)]
    q = queries.detach().to(lse.dtype)
    scaled = q * (incoming / temperature)[:, None]
    size = max(_BUDGET // len(q), 256)
    for start in range(0, len(keys), size):
        part = keys.detach()[start : start + size].to(q.dtype)
        # not over 1, though the rounding of a large lse says so
        p = torch.mm(q, part.T).div_(temperature).sub_(lse[:, None]).clamp_(max=0).exp_()
        p.masked_fill_(lse.isneginf()[:, None], 0)
        if exclude is not None:
            p.masked_fill_(torch.arange(start, start + len(part)) == exclude[:, None], 0)
        torch.mm(p.T, scaled, out=gradient[start : start + len(part)])
    return gradient


def _bounds(exclude: Tensor | None, columns: int) -> tuple[int, int]:
    """The range of columns that holds every excluded one."""
    if exclude is None:
        return columns, columns
    inside = exclude[(exclude >= 0) & (exclude < columns)]
    if not len(inside):
        return columns, columns
    return int(inside.min()), int(inside.max()) + 1


def _masked(q: Tensor, keys: Tensor, temperature: float, exclude: Tensor) -> tuple[Tensor, Tensor]:
    out = torch.arange(len(keys)) == exclude[:, None]
    mask = torch.zeros(out.shape, dtype=q.dtype).masked_fill_(out, -math.inf)
    lse, mean = flash_attention(q[None, None], keys[None, None], mask[None, None], temperature)
    return lse[0, 0].masked_fill(out.all(1), -math.inf), mean[0, 0]  # PyTorch gives 0 where all is masked


def _plain(q: Tensor, keys: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """PyTorch shares out blocks of rows over the threads; few rows leave some idle unless the keys are split too."""
    rows, width = q.shape
    blocks = math.ceil(rows / (256 if rows >= 768 else 64 if rows >= 192 else 32))
    splits = min(math.ceil(torch.get_num_threads() / blocks), len(keys))
    size = len(keys) // splits
    lse, mean = flash_attention(
        q.expand(splits, 1, rows, width), keys[: splits * size].view(splits, 1, size, width), None, temperature
    )
    result = lse[0, 0], mean[0, 0]
    for i in range(1, splits):
        result = merge(result, (lse[i, 0], mean[i, 0]))
    if splits * size < len(keys):
        rest = keys[None, None, splits * size :]
        lse, mean = flash_attention(q[None, None], rest, None, temperature)
        result = merge(result, (lse[0, 0], mean[0, 0]))
    return result
