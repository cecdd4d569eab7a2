"""The CUDA C++ kernels: csrc/cuda/taylor.cu. Tensors' addresses travel in the launch: nothing is copied to the GPU."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ltfast.ops.core import backends
from ltfast.ops.taylor.tables import importance_codes, table


def taylor_importance_(*lists: Sequence[Tensor]) -> None:
    stream = torch.cuda.current_stream()
    backends.native().cuda_taylor_importance(
        table(lists, importance_codes(*lists)), stream.device.index, stream.cuda_stream
    )


def apply_masks_(*lists: Sequence[Tensor]) -> None:
    stream = torch.cuda.current_stream()
    packed = table(lists, [tensor.element_size() for tensor in lists[0]])
    backends.native().cuda_apply_masks(packed, stream.device.index, stream.cuda_stream)
