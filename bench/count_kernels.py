"""Compiles the Triton kernels for GPUs that are not here, and counts what their machine code needs.

    python bench/count_kernels.py             # writes bench/results/kernels.json and docs/kernels.md
    python bench/count_kernels.py sm_90       # prints every kernel for one GPU, a JSON object a line
    python bench/count_kernels.py sm_90 agcl  # only the launches whose label contains a word

The ops' own launchers are called, so every kernel has the signature, the constants and the options of a real launch.
"""

import importlib
import json
import math
import os
import pkgutil
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

os.environ.setdefault("TRITON_DISABLE_LINE_INFO", "1")  # compiles faster to the same instructions
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.runtime.jit import JITFunction

from ltfast import ops
from ltfast.ops.catalog import OPS
from machine_code import MACHINES, usages
from stand_in_driver import Launch, launches_on

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench/results/kernels.json"
PAGE = ROOT / "docs/kernels.md"


def kernels() -> set[JITFunction]:
    """Every kernel of ltfast: the functions of Triton that are called `_..._kernel`."""
    found = set()
    for module in pkgutil.walk_packages(ops.__path__, "ltfast.ops."):
        if module.name.endswith(".triton"):
            values = vars(importlib.import_module(module.name)).values()
            found |= {x for x in values if isinstance(x, JITFunction) and x.__name__.endswith("_kernel")}
    return found


def floats_without_type(started: Launch) -> list[str]:
    """The Python floats that a launch passes on as float32: it does so without an annotation, and loses digits."""
    return [k for k, v in started.arguments.items() if isinstance(v, float) and started.signature[k] != "fp64"]


def elements(started: Launch) -> int | None:
    """The elements that a program handles in one pass over its code: a tile, or a block of a row."""
    for names in (("ROWS", "KEYS"), ("BLOCK",)):
        if all(name in started.options for name in names):
            return math.prod(started.options[name] for name in names)
    return None


def cases() -> Iterator[str]:
    """Calls the launchers of every op. Yields a label after each call."""
    for op in OPS:
        if op.launches is not None:
            # taylor's launchers read the addresses of their tensors, which fake ones do not have
            with nullcontext() if op.in_place else FakeTensorMode():
                yield from op.launches()


def count(target: str, word: str = "") -> Iterator[dict[str, Any]]:
    """What each specialisation of each kernel needs; last, the names of the kernels that no case launches."""
    machine = MACHINES[target]
    hip = mock.patch.object(torch.version, "hip", "7") if machine.target.backend == "hip" else nullcontext()
    known, launched, names = set(), set(), Counter[str]()
    found: dict[str, Launch] = {}
    with launches_on(machine.target) as launches, hip:
        for label in cases():
            for started in launches:
                launched.add(started.kernel)
                if id(started.compiled) in known or word not in label:
                    continue
                known.add(id(started.compiled))
                name = f"{label.strip()}: {started.kernel.__name__}"
                names[name] += 1
                found[name if names[name] == 1 else f"{name} {names[name]}"] = started
            launches.clear()
    used = usages([started.compiled for started in found.values()], machine)
    for (name, started), usage in zip(found.items(), used, strict=True):
        facts = {"kernel": name, **asdict(usage), "floats": floats_without_type(started)}
        if number := elements(started):
            facts["per_element"] = round(usage.instructions * usage.threads / number, 1)
        yield facts
    yield {"never launched": sorted(x.__name__ for x in kernels() - launched)}


def main(target: str, word: str = "") -> None:
    for facts in count(target, word):
        print(json.dumps(facts), flush=True)


def save() -> None:
    """Count for all GPUs, and write the results and the page."""
    saved = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for target, rows in zip(MACHINES, pool.map(_counted, MACHINES), strict=True):
            saved[target] = {row["kernel"]: {k: row[k] for k in KEPT if k in row} for row in rows}
    RESULTS.write_text(json.dumps(saved, indent=1) + "\n")
    PAGE.write_text(page(saved))


def _counted(target: str) -> list[dict[str, Any]]:
    """Counted in a process of its own, since Triton compiles for one GPU at a time."""
    command = [sys.executable, __file__, target]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    return [json.loads(line) for line in lines[:-1]]


# Under "before", the results keep the counts of commit fa55524, before the kernels were changed.
KEPT = ("per_element", "registers", "threads", "shared_bytes", "blocks")


class Compared(NamedTuple):
    """A kernel that is shown before and after, with the speed that is predicted for an H200."""

    size: int | None  # bytes of an element that it has to read and write; None where other work sets the limit
    prediction: str


COMPARED = {
    "agcl fp32 8142 0.0 4.0: _row_kernel": Compared(8, "70 to 78 % of the copy rate"),
    "agcl fp32 8142 without noise: _row_kernel": Compared(8, "90 % of the copy rate"),
    "agcl fp32 8142, large batch: _row_kernel": Compared(8, "70 to 78 % of the copy rate"),
    "agcl fp32 8142 without noise, large batch: _row_kernel": Compared(8, "90 % of the copy rate"),
    "agcl bf16 8142 0.5 4.0: _row_kernel": Compared(4, "at most 43 % of the copy rate"),
    "balanced_bce fp32 1000 labels: _row_kernel": Compared(8, "88 to 92 % of the copy rate"),
    "balanced_bce fp32 8142 labels: _row_kernel": Compared(8, "88 to 92 % of the copy rate"),
    "balanced_bce bf16 8142 labels: _row_kernel": Compared(4, "at most 86 % of the copy rate"),
    "vmf_cross_entropy fp32 128 1000: _cross_entropy_kernel": Compared(None, "1.2 to 1.4 times linear + cross-entropy"),
    "vmf_cross_entropy fp32 2 1000: _cross_entropy_kernel": Compared(None, ""),
    "queue_softmax bf16 128: _attend_kernel": Compared(None, "66 to 76 % of the product rate"),
    "queue_softmax fp32 128: _attend_kernel": Compared(None, "at most 247 TFLOP/s"),
    "queue_softmax key gradient bf16 128: _key_gradient_kernel": Compared(None, "5 times faster than before"),
    "queue_softmax key gradient fp32 128: _key_gradient_kernel": Compared(None, "as before"),
    "taylor_importance_ fp32 fp32 fp32: _importance_kernel": Compared(None, "88 to 93 % of the copy rate"),
}
# H200: lanes that issue in a clock, and bytes that a copy moves in a clock, of a multiprocessor (4.3 TB/s, measured)
LANES, BYTES = 128, 16.45
SHOWN = re.compile(
    r"(agcl|balanced_bce|(vmf_)?cross_entropy) (fp32|bf16) .*(1000|8142|9000)\b.*: _(row|cross_entropy)_kernel"
    r"|queue_softmax (key gradient )?(fp32|bf16) \d+\b.*: _(attend|key_gradient)_kernel"
    r"|(taylor_importance_|class_sums|roi_pool|roi_pool_backward) (fp32|bf16) .*"
)
BEFORE = """\
Before the kernels were changed, and now (sm_90). The predictions are for an H200, and were written down before any
measurement.

"""
COLUMNS = [
    "kernel",
    "instructions an element",
    "share of the copy rate, at most",
    "registers x threads",
    "programs an SM",
    "predicted",
]
COMPARISON = "| " + " | ".join(COLUMNS) + " |\n" + "| --- " * len(COLUMNS) + "|\n"
HEADER = """| kernel | instructions an element | registers | threads | shared memory, bytes | programs an SM |
| --- | --- | --- | --- | --- | --- |
"""
BEGIN, END = "<!-- counts -->", "<!-- end of counts -->"


def page(saved: dict[str, Any]) -> str:
    """The text of docs/kernels.md with these counts."""
    compared = [_compared(name, saved.get("before", {}).get(name), saved["sm_90"][name]) for name in COMPARED]
    parts = [BEFORE + COMPARISON + "\n".join(compared)]
    for target in MACHINES:
        rows = [_row(name, counts) for name, counts in saved[target].items() if SHOWN.match(name)]
        parts.append(f"### {target}\n\n{HEADER}" + "\n".join(rows))
    before, _, rest = PAGE.read_text().partition(BEGIN)
    return f"{before}{BEGIN}\n\n" + "\n\n".join(parts) + f"\n\n{END}{rest.partition(END)[2]}"


def _row(name: str, counts: dict[str, Any]) -> str:
    return f"| {name.partition(': ')[0]} | {' | '.join(str(counts.get(key, '')) for key in KEPT)} |"


def _compared(name: str, before: dict[str, Any] | None, after: dict[str, Any]) -> str:
    cells = [_cells(name, counts) for counts in (before, after) if counts is not None]
    columns = [" → ".join(column) for column in zip(*cells, strict=True)]
    return "| " + " | ".join([name.partition(": ")[0], *columns, COMPARED[name].prediction]) + " |"


def _cells(name: str, counts: dict[str, Any]) -> list[str]:
    per_element = counts.get("per_element", "")
    registers = f"{counts['registers']} x {counts['threads']}"
    return [str(per_element), ceiling(per_element, COMPARED[name].size), registers, str(counts["blocks"])]


def ceiling(per_element: float, size: int | None) -> str:
    """The share of the copy rate at which the instructions of a row's kernel issue."""
    return "-" if size is None else f"{min(100 * (size / BYTES) / (per_element / LANES), 100):.0f} %"


if __name__ == "__main__":
    main(*sys.argv[1:]) if sys.argv[1:] else save()
