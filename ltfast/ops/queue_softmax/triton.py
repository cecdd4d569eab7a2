"""The GPU kernels: a tile of keys is loaded once for both products; the keys are split over the chip and merged."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ltfast.ops.core.launch import Chip, chip_of
from ltfast.ops.core.tensors import accumulator
from ltfast.ops.queue_softmax.launch import attend_launch, key_gradient_launch, merge_launch, split_count


@triton.jit
def _tile(pointer, index, count, stride, first, width, COMPUTE: tl.constexpr, COLUMNS: tl.constexpr):
    """Rows ``index`` of a matrix, columns from ``first`` on; zero outside of it."""
    d = first + tl.arange(0, COLUMNS)
    inside = (index < count)[:, None] & (d < width)[None, :]
    return tl.load(pointer + index.to(tl.int64)[:, None] * stride + d[None, :], mask=inside, other=0.0).to(COMPUTE)


@triton.jit
def _products(left, right, left_row, right_row, left_count, right_count, left_stride, right_stride, width,
              COMPUTE: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """The products of two tiles of rows. Used for rows wider than one tile."""
    total = tl.zeros((left_row.shape[0], right_row.shape[0]), ACC)
    for first in range(0, width, COLUMNS):
        a = _tile(left, left_row, left_count, left_stride, first, width, COMPUTE, COLUMNS)
        b = _tile(right, right_row, right_count, right_stride, first, width, COMPUTE, COLUMNS)
        total = tl.dot(a, tl.trans(b), total, input_precision=PRECISION, out_dtype=ACC)
    return total


@triton.jit
def _add_tile(logits, k, top, total, weighted, factor,
              COMPUTE: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """The state of the online softmax after a tile of keys. ``top`` is multiplied by ``factor``, ``logits`` are not."""
    higher = tl.maximum(top, tl.max(logits, 1) * factor)
    base = tl.where(higher == float("-inf"), 0.0, higher)
    p = tl.exp2(logits * factor - base[:, None])  # one fused multiply-add
    shrink = tl.exp2(top - base)
    total = total * shrink + tl.sum(p, 1)
    weighted = tl.dot(p.to(COMPUTE), k, weighted * shrink[:, None], input_precision=PRECISION, out_dtype=ACC)
    return higher, total, weighted


@triton.jit
def _attend_kernel(queries, keys, valid, exclude, lse, mean, query_stride, key_stride, rows, columns, width, split_size,
                   scale: "fp64",  # noqa: F821
                   VALID: tl.constexpr, EXCLUDE: tl.constexpr, COMPUTE: tl.constexpr, ACC: tl.constexpr,
                   PRECISION: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, COLUMNS: tl.constexpr,
                   WIDE: tl.constexpr, PEELED: tl.constexpr, STAGES: tl.constexpr):  # fmt: skip
    """The log-sum-exp and the mean of a tile of queries over one part of the keys.

    queries (rows, width) and keys (columns, width), rows ``query_stride`` and ``key_stride`` apart; valid (1,) int64;
    exclude (rows,) int64; lse (splits, rows) and mean (splits, rows, width), ACC, contiguous.

    The order of the keys does not matter. With PEELED, the tiles with masks come first: those from ``low`` to ``high``,
    with the excluded keys, and the last one if the keys end inside of it. All other tiles need no mask.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    split = tl.program_id(1)
    if VALID:
        columns = tl.minimum(columns, tl.load(valid)).to(tl.int32)
    first = tl.program_id(2) * COLUMNS  # of the columns of the mean that are this program's
    if not WIDE:
        q = _tile(queries, row, rows, query_stride, 0, width, COMPUTE, COLUMNS)
    begin = split * split_size
    end = tl.maximum(tl.minimum(begin + split_size, columns), begin)
    full = begin + (end - begin) // KEYS * KEYS
    low = full if PEELED else begin
    high = full
    if EXCLUDE:
        out = tl.load(exclude + row, mask=row < rows, other=-1)
        out = tl.where((out >= begin) & (out < end), out, -1).to(tl.int32)
        if PEELED:
            least = tl.min(tl.where(out < 0, full, out))
            low = tl.minimum(begin + (least - begin) // KEYS * KEYS, full)
            high = tl.minimum(begin + (tl.max(out) - begin + KEYS) // KEYS * KEYS, full)
            high = tl.maximum(high, low)
    top = tl.full((ROWS,), float("-inf"), ACC)  # of the logits in base 2
    total = tl.zeros((ROWS,), ACC)
    weighted = tl.zeros((ROWS, COLUMNS), ACC)
    factor = tl.maximum(tl.cast(scale, ACC), 1e-37)  # not 0, which would make NaN of -inf
    for place in tl.range(low, high + (end - full), KEYS, num_stages=1 if PEELED else STAGES):
        start = place
        if PEELED:
            start += tl.where(place < high, 0, full - high)
        column = start + tl.arange(0, KEYS)
        k = _tile(keys, column, end, key_stride, first, width, COMPUTE, COLUMNS)
        if WIDE:
            logits = _products(queries, keys, row, column, rows, end, query_stride, key_stride, width,
                               COMPUTE, ACC, PRECISION, COLUMNS)  # fmt: skip
        else:
            logits = tl.dot(q, tl.trans(k), input_precision=PRECISION, out_dtype=ACC)
        logits = tl.where((column < end)[None, :], logits, float("-inf"))
        if EXCLUDE:
            logits = tl.where(column[None, :] == out[:, None], float("-inf"), logits)
        top, total, weighted = _add_tile(logits, k, top, total, weighted, factor, COMPUTE, ACC, PRECISION)
    d = first + tl.arange(0, COLUMNS)
    if PEELED:
        of_tile = keys + tl.arange(0, KEYS).to(tl.int64)[:, None] * key_stride + d[None, :]
        for place in tl.range(begin, full - (high - low), KEYS, num_stages=STAGES):
            start = place + tl.where(place < low, 0, high - low)
            k = tl.load(of_tile + start.to(tl.int64) * key_stride, mask=(d < width)[None, :], other=0.0).to(COMPUTE)
            logits = tl.dot(q, tl.trans(k), input_precision=PRECISION, out_dtype=ACC)
            top, total, weighted = _add_tile(logits, k, top, total, weighted, factor, COMPUTE, ACC, PRECISION)
    place = split * rows + row  # (splits, rows), as the merging kernel reads them
    if tl.program_id(2) == 0:
        tl.store(lse + place, (top + tl.log2(total)) * 0.6931471805599453, mask=row < rows)
    weighted = weighted / tl.where(total == 0.0, 1.0, total)[:, None]
    inside = (row < rows)[:, None] & (d < width)[None, :]
    tl.store(mean + place.to(tl.int64)[:, None] * width + d[None, :], weighted, mask=inside)


@triton.jit
def _merge_kernel(part_lse, part_mean, lse, mean, rows, width, splits, ACC: tl.constexpr,
                  SPLITS: tl.constexpr, PARTS: tl.constexpr, WIDTH: tl.constexpr):  # fmt: skip
    """One row: part_lse (splits, rows), part_mean (splits, rows, width) become lse (rows,), mean (rows, width)."""
    row = tl.program_id(0).to(tl.int64)
    s = tl.arange(0, SPLITS)
    d = tl.arange(0, WIDTH)
    part = tl.load(part_lse + s * rows + row, mask=s < splits, other=float("-inf"))
    top = tl.max(part, 0)
    base = tl.where(top == float("-inf"), 0.0, top)
    total = tl.sum(tl.exp(part - base), 0)
    weighted = tl.zeros((PARTS, WIDTH), ACC)
    for first in range(0, splits, PARTS):
        i = first + tl.arange(0, PARTS)
        weight = tl.exp(tl.load(part_lse + i * rows + row, mask=i < splits, other=float("-inf")) - base)
        inside = (i < splits)[:, None] & (d < width)[None, :]
        means = tl.load(part_mean + ((i * rows + row) * width)[:, None] + d[None, :], mask=inside, other=0.0)
        weighted += weight[:, None] * means
    weighted = tl.sum(weighted, 0)
    tl.store(lse + row, top + tl.log(total))
    tl.store(mean + row * width + d, weighted / tl.where(total == 0.0, 1.0, total), mask=d < width)


@triton.jit
def _key_gradient_kernel(queries, keys, valid, exclude, lse, incoming, gradient, query_stride, key_stride, rows,
                         columns, width, scale: "fp64", unit: "fp64",  # noqa: F821
                         VALID: tl.constexpr, EXCLUDE: tl.constexpr, WIDE: tl.constexpr, COMPUTE: tl.constexpr,
                         ACC: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
                         COLUMNS: tl.constexpr):  # fmt: skip
    """The gradient of a tile of keys.

    queries (rows, width) and keys (columns, width), rows ``query_stride`` and ``key_stride`` apart; valid (1,) int64;
    exclude (rows,) int64; lse and incoming (rows,) ACC; gradient (columns, width) ACC, contiguous.
    """
    column = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    first = tl.program_id(1) * COLUMNS
    counting = columns
    if VALID:
        counting = tl.load(valid).to(tl.int32)
    if not WIDE:
        k = _tile(keys, column, columns, key_stride, 0, width, COMPUTE, COLUMNS)
    total = tl.zeros((KEYS, COLUMNS), ACC)
    factor = tl.cast(scale, ACC)
    for start in range(0, rows, ROWS):
        row = start + tl.arange(0, ROWS)
        q = _tile(queries, row, rows, query_stride, first, width, COMPUTE, COLUMNS)
        row_lse = tl.load(lse + row, mask=row < rows, other=0.0) * 1.4426950408889634
        weight = tl.load(incoming + row, mask=row < rows, other=0.0)
        if WIDE:
            logits = _products(keys, queries, column, row, columns, rows, key_stride, query_stride, width,
                               COMPUTE, ACC, PRECISION, COLUMNS)  # fmt: skip
        else:
            logits = tl.dot(k, tl.trans(q), input_precision=PRECISION, out_dtype=ACC)
        logits = logits * factor - row_lse[None, :]
        p = tl.exp2(tl.where(logits > 0, 0.0, logits))  # not over 1, though the rounding of a large lse says so
        p = tl.where((column < counting)[:, None] & (row_lse != float("-inf"))[None, :], p, 0.0)
        if EXCLUDE:
            out = tl.load(exclude + row, mask=row < rows, other=-1)
            p = tl.where(column[:, None] == out[None, :], 0.0, p)
        p = (p * weight[None, :]).to(COMPUTE)
        total = tl.dot(p, q, total, input_precision=PRECISION, out_dtype=ACC)
    d = first + tl.arange(0, COLUMNS)
    inside = (column < columns)[:, None] & (d < width)[None, :]
    # the unit last: it would round all weights of half precision to the same side
    place = gradient + column.to(tl.int64)[:, None] * width + d[None, :]
    tl.store(place, total * tl.cast(unit, ACC), mask=inside)


_TYPES = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


def _dtypes(compute: torch.dtype, acc: torch.dtype, precision: str) -> dict[str, object]:
    return {"COMPUTE": _TYPES[compute], "ACC": _TYPES[acc], "PRECISION": precision}


def _compute(queries: Tensor) -> torch.dtype:
    """The dtype of the operands of the products."""
    if queries.dtype == torch.bfloat16 and not queries.is_cuda:
        return torch.float32  # Triton's interpreter takes bfloat16's bits for integers in a product
    return queries.dtype


def _precision(compute: torch.dtype, chip: Chip) -> str:
    """The precision of float32 products. (AMD's matrix cores multiply float32 exactly.)"""
    if compute != torch.float32 or chip.maker == "amd":
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "tf32x3"


def queue_softmax(
    queries: Tensor, keys: Tensor, temperature: float, valid: Tensor | None, exclude: Tensor | None
) -> tuple[Tensor, Tensor]:
    rows, width = queries.shape
    columns = len(keys)
    acc = accumulator(queries.dtype)
    queries, keys = (x if x.stride(1) == 1 else x.contiguous() for x in (queries, keys))
    compute = _compute(queries)
    chip = chip_of(queries.device)
    launch = attend_launch(width, compute, chip)
    blocks, parts = triton.cdiv(rows, launch.rows), triton.cdiv(width, launch.columns)
    splits = split_count(blocks * parts, columns, launch.keys, chip)
    split_size = triton.cdiv(triton.cdiv(columns, splits), launch.keys) * launch.keys
    lse = queries.new_empty(rows, dtype=acc)
    mean = queries.new_empty(rows, width, dtype=acc)
    part_lse, part_mean = lse, mean
    if splits > 1:
        part_lse, part_mean = lse.new_empty(splits, rows), mean.new_empty(splits, rows, width)
    _attend_kernel[(blocks, splits, parts)](
        queries, keys, valid, exclude, part_lse, part_mean, queries.stride(0), keys.stride(0), rows, columns, width,
        split_size, math.log2(math.e) / temperature, VALID=valid is not None, EXCLUDE=exclude is not None,
        **_dtypes(compute, acc, _precision(compute, chip)), **launch.options,
    )  # fmt: skip
    if splits > 1:
        _merge_kernel[(rows,)](
            part_lse, part_mean, lse, mean, rows, width, splits, ACC=_TYPES[acc],
            **merge_launch(splits, width).options,
        )  # fmt: skip
    return lse, mean


def key_gradient(
    queries: Tensor,
    keys: Tensor,
    temperature: float,
    valid: Tensor | None,
    exclude: Tensor | None,
    lse: Tensor,
    incoming: Tensor,
) -> Tensor:
    gradient = torch.empty(keys.shape, dtype=lse.dtype, device=keys.device)
    rows, width = queries.shape
    keys = keys.to(_compute(queries))  # as the forward pass had them: else the weights would not add up to 1
    queries, keys = (x if x.stride(1) == 1 else x.contiguous() for x in (queries, keys))
    chip = chip_of(queries.device)
    compute, precision = lse.dtype, _precision(lse.dtype, chip)
    if _compute(queries) == torch.bfloat16:
        compute = torch.bfloat16
    elif queries.dtype.itemsize == 2 and chip.maker != "amd":
        precision = "tf32"  # float16 has no room for the weights, and one TF32 product takes half precision exactly
    launch = key_gradient_launch(width, compute, chip)
    _key_gradient_kernel[(triton.cdiv(len(keys), launch.keys), triton.cdiv(width, launch.columns))](
        queries, keys, valid, exclude, lse, incoming, gradient, queries.stride(0), keys.stride(0), rows, len(keys),
        width, math.log2(math.e) / temperature, 1 / temperature, VALID=valid is not None, EXCLUDE=exclude is not None,
        **_dtypes(compute, lse.dtype, precision), **launch.options,
    )  # fmt: skip
    return gradient
