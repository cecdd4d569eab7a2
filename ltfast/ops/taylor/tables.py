"""Lists of tensors as the kernels read them: flat memory, and a table with five int64 a tensor (csrc's TensorRow).

A call for a small model is mostly the reading of attributes here, a tensor at a time: so a list at a time.
"""

from array import array
from collections.abc import Sequence
from itertools import chain, pairwise

import torch
from torch import Tensor

CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}  # csrc's Dtype


def flatten(*lists: Sequence[Tensor]) -> list[Sequence[Tensor]]:
    """The lists, with equal places in memory belonging together.

    Each place in the lists takes the order in memory of its first tensor, which stays itself where its elements fill a
    stretch of memory (contiguous, channels_last, transposed). What lies in another order is copied.
    """
    if all(tensor.is_contiguous() for tensors in lists for tensor in tensors):
        return list(lists)
    rows = []
    for row in zip(*lists, strict=True):
        if not all(tensor.is_contiguous() for tensor in row):
            lead = row[0] if extent(row[0]) == row[0].numel() else row[0].contiguous()
            row = (lead, *(as_laid_out(tensor, lead) for tensor in row[1:]))
        rows.append(row)
    return [list(column) for column in zip(*rows, strict=True)]


def write_back(tensors: Sequence[Tensor], flat: Sequence[Tensor]) -> None:
    """Copy those that ``flatten`` copied to where they came from."""
    if flat is not tensors:
        for tensor, copy in zip(tensors, flat, strict=True):
            if copy is not tensor:
                tensor.copy_(copy)


def extent(tensor: Tensor) -> int | None:
    """From the first element to the last, in elements; None where two of them may be the same memory."""
    total = min(tensor.numel(), 1)
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and total:
            if stride < total:
                return None
            total += stride * (size - 1)
    return total


def as_laid_out(tensor: Tensor, lead: Tensor) -> Tensor:
    if tensor.stride() == lead.stride():
        return tensor
    return torch.empty_strided(lead.shape, lead.stride(), dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def dtype_codes(tensors: Sequence[Tensor]) -> list[int]:
    return [CODES[tensor.dtype] for tensor in tensors]


def importance_codes(*lists: Sequence[Tensor]) -> list[int]:
    """The dtypes of accumulator, parameter and gradient, 8 bits each."""
    return [e | w << 8 | g << 16 for e, w, g in zip(*map(dtype_codes, lists), strict=True)]


def table(lists: Sequence[Sequence[Tensor]], codes: Sequence[int]) -> array:
    """The addresses of up to three tensors (0 for none), their number of elements, and a code."""
    columns: list[Sequence[int]] = [[tensor.data_ptr() for tensor in tensors] for tensors in lists]
    columns += [[0] * len(codes)] * (3 - len(lists))
    columns += [[tensor.numel() for tensor in lists[0]], codes]
    return array("q", chain.from_iterable(zip(*columns, strict=True)))


def check_apart(name: str, tensors: Sequence[Tensor]) -> None:
    """Refuse tensors that share memory, or whose own elements do: the kernels write to all of them at once."""
    sizes = [tensor.nbytes for tensor in tensors]
    for i, tensor in enumerate(tensors):
        if not tensor.is_contiguous():
            found = extent(tensor)
            if found is None:
                raise ValueError(
                    f"{name}[{i}] has strides {tensor.stride()} for shape {tuple(tensor.shape)}: expected memory of "
                    "its own for every element"
                )
            if found > tensor.numel():
                sizes[i] = 1  # its first element stands for it: the columns of a matrix lie between each other
    starts = [tensor.data_ptr() for tensor in tensors]
    spans = sorted([span for span in zip(starts, sizes, range(len(sizes)), strict=True) if span[1]])
    for (before, size, i), (start, _, j) in pairwise(spans):
        if start < before + size:
            raise ValueError(f"{name}[{max(i, j)}] shares memory with {name}[{min(i, j)}]: expected memory of its own")
