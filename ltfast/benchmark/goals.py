"""The goals that were set before the measurement, and what a bench says of each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ltfast.benchmark.neighbours import is_much
from ltfast.benchmark.results import by_case, digits

Rows = Mapping[str, Mapping[str, Any]]  # implementation -> row, of one case
EVERY_CASE = "every case"


@dataclass(frozen=True)
class Goal:
    """A bound on a number that follows from the rows of a case.

    Attributes:
        device: cpu or cuda.
        case: the name of the case, or `EVERY_CASE`, which asks of the worst.
        quantity: the number, in words.
        value: the number, or None if it was not measured, from the rows of the case and the machine's limits.
        bound: the least value that meets the goal; the largest one if `at_most`.
        unit: follows the number.
    """

    device: str
    case: str
    quantity: str
    value: Callable[[Rows, Mapping[str, Any]], float | None]
    bound: float
    unit: str = "x"
    at_most: bool = False

    def judge(self, results: Mapping[str, Any]) -> dict[str, Any]:
        """The goal, what was measured, and whether that is enough, in words."""
        cases = by_case(results)
        chosen = list(cases.values()) if self.case == EVERY_CASE else [cases[self.case]] if self.case in cases else []
        values = [value for rows in chosen if (value := self.value(rows, results["ceilings"])) is not None]
        sign = "at most" if self.at_most else "at least"
        judged = {"case": self.case, "quantity": self.quantity, "goal": f"{sign} {self.bound:.3g}{self.unit}"}
        if not values:
            return {**judged, "measured": None, "verdict": "not measured here"}
        value = max(values) if self.at_most else min(values)
        lack = (value - self.bound if self.at_most else self.bound - value) / self.bound
        verdict = "met" if lack <= 0 else f"missed by {digits(100 * lack)} %"
        if any(is_much(rows["ltfast"].get("others")) for rows in chosen):
            verdict += ", on a busy machine"
        number = str(int(value)) if isinstance(value, int) else digits(value)
        return {**judged, "measured": f"{number}{self.unit}", "verdict": verdict}


def times(peer: str, rows: Rows, _: Mapping[str, Any]) -> float | None:
    """The time of a peer, relative to ltfast."""
    return rows[peer]["times_ltfast"] if peer in rows else None


def memory(peer: str, rows: Rows, _: Mapping[str, Any]) -> float | None:
    """The peak memory of a peer, relative to ltfast's."""
    if peer not in rows or rows["ltfast"]["peak_mib"] is None:
        return None
    return rows[peer]["peak_mib"] / max(rows["ltfast"]["peak_mib"], 1e-3)


def best_attention(rows: Rows, _: Mapping[str, Any]) -> float | None:
    """The time of the fastest attention of PyTorch, relative to ltfast."""
    return min((row["times_ltfast"] for name, row in rows.items() if name.startswith("attention")), default=None)


def copied(rows: Rows, limits: Mapping[str, Any]) -> float:
    """The bytes per second in percent of a copy's."""
    return 1e5 * rows["ltfast"]["bytes"] / rows["ltfast"]["median_ms"] / limits["bytes"]


def multiplied(rows: Rows, limits: Mapping[str, Any]) -> float:
    """The operations per second in percent of the library's matrix products."""
    row = rows["ltfast"]
    return 1e5 * row["flops"] / row["median_ms"] / limits["flops"][row["dtype"]]


def own(key: str, rows: Rows, _: Mapping[str, Any]) -> float | None:
    """A number of ltfast's row."""
    return rows["ltfast"].get(key)


def faster(device: str, case: str, peer: str, bound: float) -> Goal:
    return Goal(device, case, f"time of {peer} / ltfast", partial(times, peer), bound)


def smaller(device: str, case: str, peer: str, bound: float) -> Goal:
    return Goal(device, case, f"memory of {peer} / ltfast", partial(memory, peer), bound)


_QUEUE = "queue_softmax 4096 x 1048576 x 128, forward bfloat16"
_LONG_QUEUE = "queue_softmax 4096 x 16777216 x 128, forward bfloat16"
_PROMPTS = "prompts vit_base_patch16_224, 16 images, 10 + 10 prompts float32"
_OF_LOGITS = ("agcl", "balanced_bce", "cross_entropy")
_SMALL_BATCHES = (
    "agcl 256 x 1000 float32",
    "balanced_bce 256 x 1000 float32",
    "cross_entropy 256 x 1000 float32",
    "vmf_cross_entropy 256 x 1000 x 128 float32",
    "class_sums 256 x 128, 1000 classes float32",
)

GOALS = (
    *(
        faster("cpu", f"agcl {size} float32", peer, bound)
        for size in ("256 x 1000", "1024 x 8142")
        for peer, bound in (("eager", 10), ("torch.compile", 5))
    ),
    faster("cpu", "proco 256 x 1000 x 128 float32", "published", 150),
    smaller("cpu", "proco 256 x 1000 x 128 float32", "published", 50),
    faster("cpu", "dscl 256 x 65536 x 128 float32", "eager", 5),
    smaller("cpu", "dscl 256 x 65536 x 128 float32", "eager", 10),
    faster("cpu", "patch_roi_pool 64 x 2048 x 7 x 7, 5 boxes, contiguous float32", "torchvision", 8),
    # 1.9 times the time of a copy of the parameters; the peer copies twice as much
    faster("cpu", "taylor_importance_ ResNet-50 float32", "copy", 2 / 1.9),
    # 95 % of what is possible by count: 1,521 GFLOP as published, 1,010 where prompts are only keys and values and
    # the blocks before them run once
    faster("cpu", _PROMPTS, "published", 0.95 * 1521 / 1010),
    smaller("cpu", _PROMPTS, "published", 1),
    # less memory costs at most a twentieth of the time
    *(faster("cpu", f"linear_{op} 1024 x 8142 x 512 float32", "linear, then ltfast", 1 / 1.05) for op in _OF_LOGITS),
    faster("cpu", "linear_cross_entropy 1024 x 8142 x 512 float32", "eager", 1.3),
    *(faster("cpu", f"{op} 256 x 10 float32", "eager", bound) for op, bound in (("agcl", 4), ("balanced_bce", 2))),
    *(
        Goal("cpu", f"{op} 256 x 10 float32", "time", partial(own, "median_ms"), 0.1, " ms", at_most=True)
        for op in ("agcl", "balanced_bce")
    ),
    faster("cpu", EVERY_CASE, "torch.compile", 1),
    # the noise of agcl costs more instructions than the memory has time for
    Goal("cuda", "agcl 16384 x 8142 float32", "rate of a copy", copied, 75, " %"),
    *(
        Goal("cuda", f"{op} 16384 x 8142 float32", "rate of a copy", copied, 90, " %")
        for op in ("balanced_bce", "cross_entropy")
    ),
    Goal("cuda", "taylor_importance_ 300 M parameters float32", "rate of a copy", copied, 90, " %"),
    Goal("cuda", _QUEUE, "time of the best attention / ltfast", best_attention, 1),
    Goal("cuda", _QUEUE, "rate of matrix products", multiplied, 60, " %"),
    Goal("cuda", _LONG_QUEUE, "peak memory", partial(own, "peak_mib"), 1e9 / 2**20, " MiB", at_most=True),
    faster("cuda", "vmf_cross_entropy 2048 x 8142 x 128 float32", "linear + cross_entropy", 0.5),
    *(Goal("cuda", case, "kernel launches", partial(own, "launches"), 3, "", at_most=True) for case in _SMALL_BATCHES),
    *(
        Goal("cuda", case, "captured as a CUDA graph (1: yes)", partial(own, "captured"), 1, "")
        for case in _SMALL_BATCHES
    ),
    faster("cuda", EVERY_CASE, "torch.compile", 1),
)


def cases(device: torch.device) -> set[str]:
    """The names of the cases that have a goal on a device."""
    return {goal.case for goal in GOALS if goal.device == device.type}


def judge(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each goal of the device its `case`, `quantity`, `goal`, what was `measured` (None if nothing was), and the
    `verdict`."""
    return [goal.judge(results) for goal in GOALS if goal.device == results["machine"]["device"]]
