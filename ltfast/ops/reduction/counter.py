"""Counters on the GPU that are 0 between kernels: each kernel that counts sets its counter back to 0."""

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

_kept: dict[tuple[int, int], Tensor] = {}


def zero_counter(device: torch.device) -> Tensor:
    """A counter, one int32, for one kernel on the current stream of the device.

    A stream has a counter of its own, because its kernels run one after the other. A CUDA graph gets a new one at each
    capture, which the graph sets to 0 itself: it may be replayed on any stream, beside other graphs.
    """
    if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return torch.zeros((), dtype=torch.int32, device=device)
    stream = torch.cuda.current_stream(device)
    key = stream.device_index, stream.cuda_stream
    counter = _kept.get(key)
    if counter is None:
        counter = _kept[key] = lasting_zero(device)
    return counter


def lasting_zero(device: torch.device) -> Tensor:
    """A new counter, which is 0 for all streams from now on.

    Another thread allocates it. During a warm-up of ``torch.compile(mode="reduce-overhead")``, what this thread
    allocates is in the memory of CUDA graphs, whose replays overwrite it.
    """
    with ThreadPoolExecutor(1) as another:
        return another.submit(_zero, device).result()


def _zero(device: torch.device) -> Tensor:
    counter = torch.zeros((), dtype=torch.int32, device=device)
    torch.cuda.current_stream(device).synchronize()
    return counter
