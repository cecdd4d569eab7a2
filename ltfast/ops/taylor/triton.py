"""The GPU kernels: one launch over all tensors of the same dtypes, a program for each chunk of a tensor.

Their addresses lie in a table on the device. It is copied there when a list is new: a training loop, whose tensors stay
where they are, copies it once.
"""

import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from ltfast.ops.core.launch import chip_of
from ltfast.ops.taylor.launch import BINS, DIGIT, SELECT, count_launch, passes, update_launch
from ltfast.ops.taylor.tables import dtype_codes, importance_codes, table

DTYPES = (tl.float32, tl.float64, tl.bfloat16, tl.float16)  # by CODES
INTEGERS = {1: tl.int8, 2: tl.int16, 4: tl.int32, 8: tl.int64}  # by the bytes of an element


@triton.jit
def _row(table, chunk_rows, CHUNK: tl.constexpr):
    """This program's row of the table, the first of its elements, and the number of elements of the tensor."""
    chunk = tl.program_id(0)
    row = table + tl.load(chunk_rows + chunk).to(tl.int64) * 6
    first = (chunk - tl.load(row + 5)) * CHUNK
    return row, first, tl.load(row + 3)


@triton.jit
def _pointer(address, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    pointer = tl.load(address).to(tl.pointer_type(TYPE))
    return tl.multiple_of(pointer, 16) if ALIGNED else pointer


@triton.jit
def _add_importance(e, w, g, mask):
    total = tl.load(e, mask=mask)
    product = tl.load(w, mask=mask).to(total.dtype) * tl.load(g, mask=mask).to(total.dtype)
    tl.store(e, total + product * product, mask=mask)


@triton.jit
def _importance_kernel(table, chunk_rows, E: tl.constexpr, W: tl.constexpr, G: tl.constexpr, ALIGNED: tl.constexpr,
                       BLOCK: tl.constexpr):  # fmt: skip
    """One chunk: table (tensors, 6) int64, a row of ``Tables`` for each tensor; chunk_rows (chunks,) int32, its row."""
    row, first, count = _row(table, chunk_rows, BLOCK)
    offset = first + tl.arange(0, BLOCK)
    e = _pointer(row, E, ALIGNED) + offset
    w = _pointer(row + 1, W, ALIGNED) + offset
    g = _pointer(row + 2, G, ALIGNED) + offset
    if first + BLOCK <= count:  # without a mask, loads are 16 bytes wide
        _add_importance(e, w, g, None)
    else:
        _add_importance(e, w, g, offset < count)


@triton.jit
def _copy_masked(to, where, values, mask, WITH_VALUES: tl.constexpr):
    old = tl.load(to, mask=mask)
    chosen = tl.load(where, mask=mask) != 0
    new = tl.load(values, mask=mask) if WITH_VALUES else tl.zeros_like(old)
    tl.store(to, tl.where(chosen, new, old), mask=mask)


@triton.jit
def _apply_kernel(table, chunk_rows, BITS: tl.constexpr, WITH_VALUES: tl.constexpr, ALIGNED: tl.constexpr,
                  BLOCK: tl.constexpr):  # fmt: skip
    """One chunk: table (tensors, 6) int64, a row of ``Tables`` for each tensor; chunk_rows (chunks,) int32, its row."""
    row, first, count = _row(table, chunk_rows, BLOCK)
    offset = first + tl.arange(0, BLOCK)
    to = _pointer(row, BITS, ALIGNED) + offset
    where = _pointer(row + 1, tl.int8, ALIGNED) + offset
    values = _pointer(row + 2, BITS, ALIGNED) + offset
    if first + BLOCK <= count:
        _copy_masked(to, where, values, None, WITH_VALUES)
    else:
        _copy_masked(to, where, values, offset < count, WITH_VALUES)


@triton.jit
def _ones(KEY: tl.constexpr):
    """The highest bit, and all of them."""
    top = tl.full((), 1, KEY) << (KEY.primitive_bitwidth - 1)
    return top, top | (top - 1)


@triton.jit
def _key(x, KEY: tl.constexpr):
    """Unsigned integers in the order of the numbers; every NaN is the greatest."""
    bits = x.to(KEY, bitcast=True)
    top, all_ones = _ones(KEY)
    key = bits ^ tl.where(bits >= top, all_ones, top)
    return tl.where(x != x, all_ones, key)


@triton.jit
def _digits(x, prefix, shift, mask, bins):
    """The digit that follows the prefix in each key that begins with it, and which those are."""
    digit = (_key(x, prefix.dtype) ^ prefix) >> shift.to(prefix.dtype)
    wanted = (digit < bins) & mask
    return tl.where(wanted, digit, 0).to(tl.int32), wanted


@triton.jit(do_not_specialize=["shift"])
def _count_kernel(table, chunk_rows, counts, state, shift, VALUE: tl.constexpr, KEY: tl.constexpr,
                  MASKED: tl.constexpr, ALIGNED: tl.constexpr, BINS: tl.constexpr, BLOCK: tl.constexpr,
                  TILES: tl.constexpr):  # fmt: skip
    """The digits of one chunk: table (tensors, 6), counts (BINS,) and state (2,) int64; chunk_rows (chunks,) int32."""
    row, first, count = _row(table, chunk_rows, BLOCK * TILES)
    values = _pointer(row, VALUE, ALIGNED)
    prefix = tl.load(state).to(KEY)
    bins = tl.arange(0, BINS)
    found = tl.zeros((BINS,), tl.int32)
    for start in range(first, tl.minimum(first + BLOCK * TILES, count), BLOCK):
        offset = start + tl.arange(0, BLOCK)
        mask = offset < count
        if start + BLOCK <= count:  # noqa: SIM108
            x = tl.load(values + offset)
        else:
            x = tl.load(values + offset, mask=mask, other=0.0)
        if MASKED:
            mask &= tl.load(_pointer(row + 1, tl.int8, ALIGNED) + offset, mask=mask, other=0) != 0
        digit, wanted = _digits(x, prefix, shift, mask, BINS)
        number = tl.sum(wanted.to(tl.int32))
        if number > 0:
            # Those that are not wanted were counted as zeros.
            found += tl.histogram(digit, BINS) - tl.where(bins == 0, BLOCK - number, 0)
    tl.atomic_add(counts + bins, found.to(tl.int64), mask=found > 0, sem="relaxed")


@triton.jit(do_not_specialize=["shift", "fraction_bits"])
def _select_kernel(counts, state, out, shift, fraction_bits: "i64", FIRST: tl.constexpr,  # noqa: F821
                   LAST: tl.constexpr, VALUE: tl.constexpr, KEY: tl.constexpr, BINS: tl.constexpr):  # fmt: skip
    """Finds the bin that holds the value, and its rank there: counts (BINS,) and state (2,) int64, a prefix of the key
    and a rank; out (1,)."""
    bins = tl.arange(0, BINS)
    number = tl.load(counts + bins)
    upto = tl.cumsum(number, 0)
    if FIRST:
        total = tl.sum(number)
        exact = fraction_bits.to(tl.float64, bitcast=True) * total.to(tl.float64)
        whole = exact.to(tl.int64)
        rest = exact - whole.to(tl.float64)
        up = (rest > 0.5) | ((rest == 0.5) & ((whole & 1) == 1))  # Python's round
        rank = tl.minimum(tl.maximum(whole + up.to(tl.int64), 1), total)
        prefix = tl.full((), 0, tl.int64)
    else:
        rank = tl.load(state + 1)
        prefix = tl.load(state)
    here = (upto >= rank) & (upto - number < rank)
    prefix |= tl.sum(tl.where(here, bins, 0)).to(tl.int64) << shift.to(tl.int64)
    rank -= tl.sum(tl.where(here, upto - number, 0))
    if LAST:  # without any value the prefix is 0, which no number has: it becomes NaN
        key = prefix.to(KEY)
        top, all_ones = _ones(KEY)
        bits = key ^ tl.where(key >= top, top, all_ones)
        tl.store(out, bits.to(VALUE, bitcast=True))
    else:
        tl.store(state, prefix)
        tl.store(state + 1, rank)


class Tables:
    """A list on the device: six int64 a tensor (TensorRow, and its first chunk), and the row of each chunk."""

    def __init__(self, packed: bytes, chunk: int, device: torch.device):
        rows = np.frombuffer(packed, np.int64).reshape(-1, 5)
        chunks = -(-rows[:, 3] // chunk)
        self.chunks = int(chunks.sum())
        self.aligned = not (rows[:, :3] % 16).any()
        wide = np.column_stack((rows, chunks.cumsum() - chunks))
        chunk_rows = np.repeat(np.arange(len(rows), dtype=np.int32), chunks)
        self.host = torch.from_numpy(np.concatenate((wide.reshape(-1).view(np.int32), chunk_rows)))
        if device.type == "cuda":
            self.host = self.host.pin_memory()
        moved = self.host.to(device, non_blocking=True)
        self.table, self.chunk_rows = moved[: 2 * wide.size].view(torch.int64), moved[2 * wide.size :]


@lru_cache(maxsize=64)
def _cached_tables(packed: bytes, chunk: int, device: torch.device, stream: int) -> Tables:
    return Tables(packed, chunk, device)


_captured: list[Tables] = []  # CUDA graphs read them whenever they are replayed


def _tables(lists: Sequence[Sequence[Tensor]], codes: Sequence[int], chunk: int) -> Tables:
    device, packed = lists[0][0].device, table(lists, codes).tobytes()
    if device.type != "cuda":
        return Tables(packed, chunk, device)
    if torch.cuda.is_current_stream_capturing():
        _captured.append(Tables(packed, chunk, device))
        return _captured[-1]
    return _cached_tables(packed, chunk, device, torch.cuda.current_stream().cuda_stream)


def _groups(
    lists: Sequence[Sequence[Tensor]], codes: Sequence[int]
) -> Iterator[tuple[int, Sequence[Sequence[Tensor]]]]:
    """The tensors of equal codes, most often all of them."""
    for code in dict.fromkeys(codes):
        yield code, [[tensor for tensor, own in zip(tensors, codes, strict=True) if own == code] for tensors in lists]


def taylor_importance_(*lists: Sequence[Tensor]) -> None:
    for code, group in _groups(lists, importance_codes(*lists)):
        launch = update_launch(chip_of(group[0][0].device))
        tables = _tables(group, [code] * len(group[0]), launch.block)
        if tables.chunks:
            e, w, g = (DTYPES[code >> 8 * i & 255] for i in range(3))
            _importance_kernel[(tables.chunks,)](
                tables.table, tables.chunk_rows, E=e, W=w, G=g, ALIGNED=tables.aligned, **launch.options
            )


def apply_masks_(*lists: Sequence[Tensor]) -> None:
    for size, group in _groups(lists, [tensor.element_size() for tensor in lists[0]]):
        launch = update_launch(chip_of(group[0][0].device))
        tables = _tables(group, [size] * len(group[0]), launch.block)
        if tables.chunks:
            _apply_kernel[(tables.chunks,)](
                tables.table, tables.chunk_rows, BITS=INTEGERS[size], WITH_VALUES=len(lists) == 3,
                ALIGNED=tables.aligned, **launch.options,
            )  # fmt: skip


def count_dtypes(dtype: torch.dtype) -> dict[str, tl.dtype]:
    wide = dtype == torch.float64
    return {"VALUE": tl.float64 if wide else tl.float32, "KEY": tl.uint64 if wide else tl.uint32}


def importance_threshold(fraction: float, values: Sequence[Tensor], *masks: Sequence[Tensor]) -> Tensor:
    out = values[0].new_empty(())
    launch = count_launch(chip_of(out.device))
    tables = _tables((values, *masks), dtype_codes(values), launch.chunk)
    dtypes = count_dtypes(out.dtype)
    digits, bins = passes(out.dtype), BINS
    counts = torch.zeros(digits * bins + 2, dtype=torch.int64, device=out.device)
    state = counts[digits * bins :]
    (fraction_bits,) = struct.unpack("q", struct.pack("d", fraction))  # the interpreter would round it to float32
    for i in range(digits):
        shift, own = DIGIT * (digits - 1 - i), counts[i * bins :]
        _count_kernel[(tables.chunks,)](
            tables.table, tables.chunk_rows, own, state, shift, MASKED=bool(masks), ALIGNED=tables.aligned,
            **dtypes, **launch.options,
        )  # fmt: skip
        _select_kernel[(1,)](
            own, state, out, shift, fraction_bits, FIRST=i == 0, LAST=i == digits - 1, **dtypes, **SELECT.options
        )
    return out
