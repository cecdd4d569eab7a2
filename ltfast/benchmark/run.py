"""Runs the cases of a bench, with the implementations of a case in turn, and collects the measurements.

From Python, without the command line:

    device = torch.device("cuda")
    cases = run.select(device, ops=["agcl"], peers=["eager", "copy"])
    results = run.bench(device, cases, out=Path("bench"))

`select` may be called several times, and a case keeps only some peers after `case.with_peers(["torch.compile"])`.
"""

import gc
import json
import os
import platform
import subprocess
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch

import ltfast
from ltfast.benchmark import ceilings, clock, goals
from ltfast.benchmark.cases import benches
from ltfast.benchmark.ceilings import Ceilings
from ltfast.benchmark.neighbours import busy_now, neighbours
from ltfast.benchmark.results import LINES, RESULTS
from ltfast.engine.report import write_json
from ltfast.errors import InputError
from ltfast.ops.core import backends
from ltfast.ops.core.bench import Case, Growth, Step, Unavailable

BLOCKS = 4  # turns of each implementation, so that a disturbance of the machine does not affect only one of them

Rows = list[dict[str, Any]]
Result = TypeVar("Result")


def select(
    device: torch.device,
    *,
    ops: Collection[str] | None = None,
    shapes: Collection[str] | None = None,
    peers: Collection[str] | None = None,
) -> list[Case]:
    """The cases of some ops and shapes, those that have a goal first.

    Args:
        device: the device to measure.
        ops: names from `ltfast.benchmark.cases.benches()`; None means all.
        shapes: names from `ltfast.benchmark.cases.SHAPES`; None means all.
        peers: the implementations beside ltfast; None means all. `Case.with_peers` chooses those of one case.

    Raises:
        ValueError: the ops have no case with one of these shapes, or a peer is unknown.
    """
    known = benches()
    chosen = list(known) if ops is None else ops
    cases = [case for op in chosen for case in known[op].cases(device) if shapes is None or case.shape in shapes]
    if not cases:
        raise InputError(f"expected one that {', '.join(chosen)} has, got {', '.join(shapes or ())}", name="shapes")
    if peers is not None:
        names = {name for case in cases for name in case.implementations} - {"ltfast"}
        if unknown := set(peers) - names:
            raise InputError(
                f"expected some of {', '.join(sorted(names))}, got {', '.join(sorted(unknown))}", name="peers"
            )
        cases = [case.with_peers(peers) for case in cases]
    with_goal = goals.cases(device)
    return sorted(cases, key=lambda case: case.name not in with_goal)


def growths(device: torch.device, ops: Collection[str]) -> list[Growth]:
    """What is measured of the growth of some ops."""
    found = (benches()[op].growth for op in ops)
    return [growth for make in found if make is not None for growth in make(device)]


def bench(
    device: torch.device,
    cases: Iterable[Case],
    *,
    growth: Iterable[Growth] = (),
    seconds: float = 0.2,
    out: Path | None = None,
    show: Callable[[Rows, Rows], None] = lambda rows, missing: None,
) -> dict[str, Any]:
    """Time cases. What fails becomes an entry of `missing`, and the next case is measured.

    Args:
        device: the device to measure.
        cases: the cases, in the order of measurement; see `select`.
        growth: see `growths`.
        seconds: see `run_case`.
        out: a folder for `results.json`, and for `results.jsonl`, to which what is measured is written at once, a JSON
            object a line: the machine, the limits, and `rows` and `missing` after each case.
        show: called with the rows and what is missing of each case when it is done.

    Returns:
        The content of `results.json`: `machine`, `ceilings`, the `rows` and `missing` of `run_case`, `growth`, and the
        `goals` of `ltfast.benchmark.goals`.
    """
    rows: Rows = []
    missing: Rows = []
    growing: Rows = []
    about = machine(device)
    with nothing_compiled(), journal(out and out / LINES) as note:
        note({"machine": about})
        limits = measure_limits(device)
        note({"ceilings": asdict(limits)})
        for case in cases:
            if limits.disturbed and not busy_now():
                limits = limits.best(measure_limits(device))
                note({"ceilings": asdict(limits)})
            measured, absent = run_case(case, device, limits, seconds=seconds)
            for entry in (*measured, *absent):
                note(entry)
            show(measured, absent)
            rows += measured
            missing += absent
        for one in growth:
            found = _growth_or_failure(one, device, seconds=seconds / 10)
            note(found)
            (missing if "failed" in found else growing).append(found)
    results = {
        "machine": about,
        "ceilings": asdict(limits),
        "rows": [row | limits.share(row) for row in rows],  # the limits may have been measured again since
        "missing": missing,
        "growth": growing,
    }
    results["goals"] = goals.judge(results)
    if out is not None:
        write_json(out / RESULTS, results)
    return results


def measure_limits(device: torch.device) -> Ceilings:
    """The limits of the machine, and whether other processes used the cores meanwhile."""
    with neighbours() as others:
        limits = ceilings.measure(device)
    return replace(limits, others=others.share)


@contextmanager
def journal(path: Path | None) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Writes JSON objects to a file, each at once; nowhere if there is no path."""
    if path is None:
        yield lambda entry: None
        return
    with path.open("w") as file:

        def write(entry: Mapping[str, Any]) -> None:
            file.write(json.dumps(entry) + "\n")
            file.flush()

        yield write


@contextmanager
def nothing_compiled() -> Iterator[None]:
    """Give `torch.compile` an empty cache. A cached kernel may have been made for another number of threads, and the
    time of a first call would not include compilation."""
    name = "TORCHINDUCTOR_CACHE_DIR"
    before = os.environ.get(name)
    with TemporaryDirectory() as folder:
        os.environ[name] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before


def run_case(case: Case, device: torch.device, limits: Ceilings, *, seconds: float) -> tuple[Rows, Rows]:
    """Time a case. Returns a row for each implementation that runs here, and an entry for each other one: its `case`,
    `implementation` and `reason`, and whether it `failed`. Something that is not installed or not made for this device
    has not failed, and neither has a peer that needs more memory than there is. If ltfast fails, the others are not
    measured: there is nothing to compare them with.

    Args:
        case: the case to time.
        device: the device to measure.
        limits: the limits of the machine.
        seconds: the time for the timed calls of each implementation, at least four samples.
    """
    torch.compiler.reset()  # beyond its limit of variants, torch.compile would silently run a function eagerly
    missing: dict[str, dict[str, Any]] = {}

    def attempt(name: str, action: Callable[[], Result]) -> Result | None:
        if name in missing or "ltfast" in missing:
            return None
        try:
            return action()
        except Exception as error:
            missing[name] = failure(error, case.name, name)
        free(device)  # only now, since the error kept the step's tensors
        return None

    def start(name: str) -> clock.Stopwatch:
        return clock.Stopwatch(case.implementations[name](), sets, device)

    def timed() -> tuple[dict[str, tuple[Step, clock.Timing]], float | None]:
        """The steps that run and their times, and what other processes used meanwhile. The stopwatches end here, since
        their graphs hold memory."""
        watches = {name: attempt(name, partial(start, name)) for name in case.implementations}
        with neighbours() as others:
            for _ in range(BLOCKS):
                for name, watch in watches.items():
                    if watch is not None:
                        attempt(name, partial(watch.run, seconds / BLOCKS, 1))
        if "ltfast" in missing:
            return {}, others.share
        done = {name: watch for name, watch in watches.items() if watch is not None and name not in missing}
        return {name: (watch.step, watch.timing()) for name, watch in done.items()}, others.share

    def row(name: str) -> dict[str, Any]:
        step, timing = steps[name]
        call = partial(step, sets[0])
        measured = {
            "case": case.name,
            "op": case.op,
            "shape": case.shape,
            "size": case.size,
            "dtype": str(case.dtype).removeprefix("torch."),
            "implementation": name,
            **asdict(timing),
            "times_ltfast": timing.median_ms / steps["ltfast"][1].median_ms,
            **asdict(case.work),
            "peak_mib": clock.peak_memory(call, device),
            "launches": clock.launches(call, device),
            "others": others,
        }
        return measured | limits.share(measured)

    sets = attempt("ltfast", lambda: clock.cold_sets(case.inputs, device)) or []
    steps, others = timed()
    free(device)
    rows = [attempt(name, partial(row, name)) for name in steps]
    if "ltfast" in missing:
        return [], list(missing.values())
    return [row for row in rows if row is not None], list(missing.values())


def _growth_or_failure(growth: Growth, device: torch.device, *, seconds: float) -> dict[str, Any]:
    try:
        return run_growth(growth, device, seconds=seconds)
    except Exception as error:
        found = failure(error, f"growth of {growth.op}", "ltfast")
    free(device)
    return found


def failure(error: Exception, case: str, implementation: str) -> dict[str, Any]:
    """Why something was not measured."""
    ours, first = implementation == "ltfast", (str(error).splitlines() or [""])[0]
    expected = not ours
    if isinstance(error, ModuleNotFoundError):
        reason = f"{error.name} is not installed"
    elif isinstance(error, Unavailable):
        reason = first
    elif _is_out_of_memory(error):
        reason = "out of memory"
    else:
        reason, expected = f"{type(error).__name__}: {first}", False
    return {"case": case, "implementation": implementation, "reason": reason, "failed": not expected}


def _is_out_of_memory(error: Exception) -> bool:
    # PyTorch has no class for a CPU's memory
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def free(device: torch.device) -> None:
    """Give up the memory of what is no longer used, so that it can be measured, or used by another step."""
    gc.collect()
    if device.type == "cuda":
        with suppress(RuntimeError):  # after an error of a kernel, every call raises it
            torch.cuda.empty_cache()


def run_growth(growth: Growth, device: torch.device, *, seconds: float) -> dict[str, Any]:
    """Measure ltfast's time and memory while one dimension at a time is varied."""
    lines = {}
    for dimension, sizes in growth.ranges.items():
        points = []
        for size in sizes:
            case = growth.case(**{**growth.base, dimension: size})
            watch = clock.Stopwatch(case.implementations["ltfast"](), [case.inputs()], device)
            watch.run(seconds, 3)
            memory = clock.peak_memory(partial(watch.step, watch.inputs[0]), device)
            points.append({"size": size, "median_ms": watch.timing().median_ms, "peak_mib": memory})
        lines[dimension] = points
    return {"op": growth.op, "base": dict(growth.base), "lines": lines}


def machine(device: torch.device) -> dict[str, Any]:
    """The facts that the measurements depend on: processor, versions, commit."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
        name = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.machine())
    return {
        "machine": name,
        "device": device.type,
        "threads": torch.get_num_threads(),
        "isa": backends.native().isa() if backends.why_not("native", torch.device("cpu")) is None else "none",
        "ltfast": ltfast.__version__,
        "commit": _commit(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "python": platform.python_version(),
    }


def _commit() -> str:
    """The commit of the checkout that contains this file."""
    with suppress(OSError, subprocess.CalledProcessError):
        words = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    return "unknown"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
