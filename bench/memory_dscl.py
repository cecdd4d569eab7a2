"""Peak memory of a DSCL step (loss, query gradient, the queue's update) beside its arguments: ltfast and as published.

python bench/memory_dscl.py [BATCH QUEUE WIDTH]
"""

import ctypes
import subprocess
import sys

import torch
from torch.nn import functional as F

import dscl_baseline
from ltfast.losses import DSCLLoss, MemoryQueue
from memory_proco import resident

CLASSES = 1000


def measure(implementation: str, rows: int, length: int, width: int) -> float:
    """MiB, in a process of its own."""
    torch.manual_seed(0)
    ours = DSCLLoss()

    def arguments(rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, MemoryQueue]:
        queue = MemoryQueue(width, length, num_classes=CLASSES)
        queue.enqueue(F.normalize(torch.randn(length, width)), torch.randint(CLASSES, (length,)))
        query, key = F.normalize(torch.randn(2, rows, width), dim=2)
        return query.requires_grad_(), key, torch.randint(CLASSES, (rows,)), queue

    def step(query: torch.Tensor, key: torch.Tensor, labels: torch.Tensor, queue: MemoryQueue) -> None:
        if implementation == "ltfast":
            ours(query, key, labels, queue).backward()
        else:
            dscl_baseline.dscl(query, key, labels, queue.keys, queue.labels).mean().backward()
        queue.enqueue(key, labels)

    step(*arguments(2, 64))  # what libraries allocate at their first call
    given = arguments(rows, length)
    ctypes.CDLL(None).malloc_trim(0)  # what the allocator kept of filling the queue would hide as much of the step
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")  # the peak starts anew
    before = resident(peak=False)
    step(*given)
    return (resident(peak=True) - before) / 1024


def main() -> None:
    if len(sys.argv) == 5:
        print(measure(sys.argv[1], *map(int, sys.argv[2:])))
        return
    shape = sys.argv[1:] or ["256", "65536", "128"]
    mib = {}
    for implementation in ("ltfast", "published"):
        command = [sys.executable, __file__, implementation, *shape]
        mib[implementation] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(f"{implementation:10} {mib[implementation]:8.1f} MiB")
    print(f"published / ltfast {mib['published'] / mib['ltfast']:.0f}")


if __name__ == "__main__":
    main()
