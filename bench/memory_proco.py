"""Peak memory of a ProCo step (statistics, loss, feature gradient) beside its arguments: ltfast and the authors'.

python bench/memory_proco.py [BATCH CLASSES WIDTH]
"""

import subprocess
import sys

import torch
from torch.nn import functional as F

from ltfast.losses import ProCoLoss
from proco_baseline import Baseline


def resident(peak: bool) -> int:
    """KiB; Linux only."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM" if peak else "VmRSS"))


def measure(implementation: str, rows: int, classes: int, width: int) -> float:
    """MiB, in a process of its own."""
    torch.manual_seed(0)
    features = F.normalize(torch.randn(rows, width)).requires_grad_()
    labels = torch.randint(classes, (rows,))
    ours, published = ProCoLoss(classes, width), Baseline(classes, width)

    def step(features: torch.Tensor, labels: torch.Tensor) -> None:
        if implementation == "ltfast":
            ours.update(features.detach(), labels)
            ours(features, labels).backward()
        else:
            published.update(features.detach(), labels)
            F.cross_entropy(published.logits(features), labels).backward()

    step(features[:2].detach().requires_grad_(), labels[:2])  # what libraries allocate at their first call
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")  # the peak starts anew
    before = resident(peak=False)
    step(features, labels)
    return (resident(peak=True) - before) / 1024


def main() -> None:
    if len(sys.argv) == 5:
        print(measure(sys.argv[1], *map(int, sys.argv[2:])))
        return
    shape = sys.argv[1:] or ["256", "1000", "128"]
    mib = {}
    for implementation in ("ltfast", "published"):
        command = [sys.executable, __file__, implementation, *shape]
        mib[implementation] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(f"{implementation:10} {mib[implementation]:8.1f} MiB")
    print(f"published / ltfast {mib['published'] / mib['ltfast']:.0f}")


if __name__ == "__main__":
    main()
