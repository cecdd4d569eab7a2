"""Runs the cases of a bench, with the implementations of a case in turn, and collects the measurements."""

import gc
import os
import platform
import subprocess
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import ltfast
from ltfast.benchmark import ceilings, clock
from ltfast.benchmark.cases import benches
from ltfast.benchmark.ceilings import Ceilings
from ltfast.errors import InputError
from ltfast.ops.core import backends
from ltfast.ops.core.bench import Case, Growth, Unavailable

BLOCKS = 4  # turns of each implementation, so that a disturbance of the machine does not affect only one of them


def bench(
    device: torch.device,
    *,
    ops: Collection[str],
    shapes: Collection[str],
    peers: Collection[str] | None,
    seconds: float,
    with_growth: bool,
    show: Callable[[list[dict[str, Any]]], None],
) -> dict[str, Any]:
    """Time the cases of some ops and shapes.

    Args:
        device: the device to measure.
        ops: names from `ltfast.benchmark.cases.benches()`.
        shapes: names from `ltfast.benchmark.cases.SHAPES`.
        peers, seconds: see `run_case`.
        with_growth: whether `run_growth` is run too.
        show: called with the rows of each case when it is done.

    Returns:
        The content of `results.json`: `machine`, `ceilings`, the `rows` and `missing` of `run_case`, and `growth`.

    Raises:
        ValueError: the ops have no case with one of these shapes, or a peer is unknown.
    """
    chosen = {op: benches()[op] for op in ops}

    def cases(op: str) -> Iterator[Case]:
        return (case for case in chosen[op].cases(device) if case.shape in shapes)

    names = {name for op in ops for case in cases(op) for name in case.implementations}
    if not names:
        raise InputError(f"expected one that {', '.join(ops)} has, got {', '.join(shapes)}", name="shapes")
    if unknown := set(peers or ()) - names:
        known = ", ".join(sorted(names - {"ltfast"}))
        raise InputError(f"expected some of {known}, got {', '.join(sorted(unknown))}", name="peers")
    limits = ceilings.measure(device)
    rows: list[dict[str, Any]] = []
    missing: list[dict[str, str]] = []
    growing: list[dict[str, Any]] = []
    with nothing_compiled():
        for op in ops:
            for case in cases(op):
                measured, absent = run_case(case, device, limits, seconds=seconds, peers=peers)
                show(measured)
                rows += measured
                missing += absent
            growth = chosen[op].growth
            if with_growth and growth is not None:
                growing += [run_growth(one, device, seconds=seconds / 10) for one in growth(device)]
    return {
        "machine": machine(device),
        "ceilings": asdict(limits),
        "rows": rows,
        "missing": missing,
        "growth": growing,
    }


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


def run_case(
    case: Case,
    device: torch.device,
    limits: Ceilings,
    *,
    seconds: float,
    peers: Collection[str] | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Time a case. Returns a row for each implementation that runs here, and for each other one its `case`,
    `implementation` and `reason`.

    Args:
        case: the case to time.
        device: the device to measure.
        limits: the limits of the machine.
        seconds: the time for the timed calls of each implementation, at least four calls.
        peers: the implementations to time beside ltfast; None means all.
    """
    torch.compiler.reset()  # beyond its limit of variants, torch.compile would silently run a function eagerly
    sets = clock.cold_sets(case.inputs, device)
    watches: dict[str, clock.Stopwatch] = {}
    missing = []
    for name, make in case.implementations.items():
        if peers is not None and name != "ltfast" and name not in peers:
            continue
        try:
            watches[name] = clock.Stopwatch(make(), sets, device)
        except Exception as error:
            if name == "ltfast":
                raise
            reason = _reason(error)
            missing.append({"case": case.name, "implementation": name, "reason": reason})
    for _ in range(BLOCKS):
        for watch in watches.values():
            watch.run(seconds / BLOCKS, 1)
    gc.collect()  # before memory is measured
    ours = watches["ltfast"].timing().median_ms
    rows = []
    for name, watch in watches.items():
        timing = watch.timing()
        least, limit = limits.least_ms(case.work, case.dtype)

        call = partial(watch.step, sets[0])
        rows.append(
            {
                "case": case.name,
                "op": case.op,
                "shape": case.shape,
                "size": case.size,
                "dtype": str(case.dtype).removeprefix("torch."),
                "implementation": name,
                **asdict(timing),
                "times_ltfast": timing.median_ms / ours,
                **asdict(case.work),
                "least_ms": least,
                "limit": limit,
                "share": least / timing.median_ms,
                "peak_mib": clock.peak_memory(call, device),
                "launches": clock.launches(call, device),
            }
        )
    return rows, missing


def _reason(error: Exception) -> str:
    """The reason why a peer did not run. No failure of a peer ends the bench."""
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed"
    first = (str(error).splitlines() or [""])[0]
    return first if isinstance(error, Unavailable) else f"{type(error).__name__}: {first}"


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
        "isa": backends.native().isa(),
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
