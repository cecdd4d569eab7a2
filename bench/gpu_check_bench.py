"""The benchmarks of `make gpu-check`, each in a process of its own.

    python bench/gpu_check_bench.py {compile,goals,torch.compile,rest,longest,step,profile} {cuda,cpu} OUT

`compile` compiles ltfast's kernels for all cases, and for the examples of `gpu_check_kernels.py`, in parallel. `goals`
times the cases that have a goal, the queue with every attention. `torch.compile` times it on five cases, `rest` all
other cases, `longest` the longest queue, and `step` training steps. `profile` runs the main kernels once for Nsight
Compute. Results are appended to OUT/results.jsonl, those of `step` to OUT/steps.jsonl. On "cpu" the sizes are tiny:
this checks the programs, and measures nothing.
"""

import json
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path

import torch

import gpu_check_kernels
from ltfast.benchmark import ceilings, goals, run, step
from ltfast.benchmark.results import LINES
from ltfast.benchmark.steps.size import Size
from ltfast.ops.core.bench import Case
from ltfast.ops.core.cases import Sizes
from ltfast.ops.queue_softmax import bench as queue_bench

LOSSES = tuple(f"{op} 16384 x 8142 float32" for op in ("agcl", "balanced_bce", "cross_entropy"))
VMF = "vmf_cross_entropy 2048 x 8142 x 128 float32"
QUEUE, LONGEST = (f"queue_softmax 4096 x {length} x 128, forward bfloat16" for length in (2**20, 2**24))
COMPILED = (*LOSSES, VMF, "queue_softmax 256 x 65536 x 128, forward + backward float32")
PROFILED = (*LOSSES, QUEUE, VMF)
PEERS = (
    "eager", "copy", "linear + cross_entropy", "linear, then ltfast", "liger cross_entropy", "liger fused linear",
    "cut-cross-entropy, bf16", "attention, flash, split", "attention, cudnn, split",
)  # fmt: skip
PROCESSES = 12


@cache
def every_case(device: torch.device) -> dict[str, Case]:
    """The cases by name, those with a goal first."""
    if device.type == "cuda":
        return {case.name: case for case in run.select(device)}
    growths = run.growths(device, ("agcl", "balanced_bce", "cross_entropy", "vmf_cross_entropy", "taylor_importance_"))
    tiny = [growth.case(**{name: sizes[0] for name, sizes in growth.ranges.items()}) for growth in growths]
    tiny.append(queue_bench.forward(device, "growth", 32, 256, 16, torch.float32))
    return {case.name: case for case in tiny}


def chosen(group: str, device: torch.device) -> list[Case]:
    """The cases of a group, with the peers that are timed."""
    cases, with_goal = every_case(device), goals.cases(device)
    if device.type == "cpu":
        return [case.with_peers(attentions(case)) for case in cases.values()][:: 1 if group == "goals" else 3]
    if group == "torch.compile":
        return [cases[name].with_peers(["torch.compile"]) for name in COMPILED]
    if group == "longest":
        return [cases[LONGEST].with_peers(["attention, flash", "attention, cudnn"])]
    wanted = [case for name, case in cases.items() if name != LONGEST and (name in with_goal) == (group == "goals")]
    return [case.with_peers([*PEERS, *(attentions(case) if case.name == QUEUE else [])]) for case in wanted]


def attentions(case: Case) -> list[str]:
    return [name for name in case.implementations if name.startswith("attention")]


def measure(group: str, device: torch.device, out: Path) -> bool:
    """Times a group. Returns whether nothing failed."""
    if device.type == "cpu":
        ceilings.measure = lambda device: ceilings.Ceilings(1e9, {"float32": 1e11}, 1e9)  # takes half a minute
    found = run.bench(device, chosen(group, device), seconds=0.1 if device.type == "cuda" else 1e-3, out=out)
    for row in found["rows"]:
        print(f"{row['case']}, {row['implementation']}: {row['median_ms']:.4g} ms, {row['times_ltfast']:.3g} x ltfast")
    for goal in found["goals"]:
        if goal["measured"] is not None:
            print(f"goal: {goal['case']}, {goal['quantity']}: {goal['measured']}, {goal['goal']}: {goal['verdict']}")
    return not any(row["failed"] for row in found["missing"])


def compile_one(device: torch.device, what: str | tuple[str, Sizes]) -> dict[str, object]:
    """Runs a case, or an example."""
    started = time.perf_counter()
    name = what if isinstance(what, str) else f"{what[0]}, {what[1]}"
    try:
        if isinstance(what, str):
            case = every_case(device)[what]
            case.implementations["ltfast"]()(case.inputs())
        else:
            gpu_check_kernels.run_example(device, *what)
    except Exception as error:  # the bench or the sanitizer reports it again
        return {"case": name, "reason": f"{type(error).__name__}: {error}", "failed": True}
    torch.cuda.empty_cache()
    return {"case": name, "seconds": time.perf_counter() - started}


def compile_all(device: torch.device) -> Iterable[dict[str, object]]:
    cases = [name for name in every_case(device) if name != LONGEST]
    examples = gpu_check_kernels.calls(small=device.type == "cpu")
    with ProcessPoolExecutor(PROCESSES if device.type == "cuda" else 1, get_context("spawn")) as pool:
        yield from pool.map(partial(compile_one, device), [*cases, *examples])


def steps(device: torch.device, out: Path) -> bool:
    """Times training steps. Returns whether nothing failed."""
    if device.type == "cuda":
        found = step.bench(device, seconds=0.2, out=out)
    else:
        tiny = {"livt": Size("vit_tiny_patch16_224", 4, 32, classes=7)}
        found = step.bench(device, tiny, seconds=1e-3, sizes=tiny, out=out)
    for row in found["rows"]:
        print(f"{row['method']}, {row['implementation']}: {row['median_ms']:.4g} ms")
    return not found["missing"]


def profile(device: torch.device) -> None:
    """Runs each step twice, and lets the profiler see the second time alone."""
    cases = every_case(device)
    for name in PROFILED if device.type == "cuda" else list(cases)[:2]:
        call, inputs = cases[name].implementations["ltfast"](), cases[name].inputs()
        call(inputs)
        if device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.profiler.start()
        call(inputs)
        if device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.profiler.stop()


def write(rows: Iterable[dict[str, object]], out: Path) -> bool:
    """Writes rows as they come. Returns whether nothing failed."""
    failed = False
    with (out / LINES).open("w") as file:
        for row in rows:
            print(json.dumps(row), file=file, flush=True)
            print(row, flush=True)
            failed |= "failed" in row
    return not failed


def main(group: str, kind: str, folder: str) -> int:
    device, out = torch.device(kind), Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    if group == "profile":
        profile(device)
        return 0
    if group == "compile":
        good = write(compile_all(device), out)
    elif group == "step":
        good = steps(device, out)
    else:
        good = measure(group, device, out)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
