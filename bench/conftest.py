"""Side-by-side benchmarks: every group prints its medians and how many times slower each peer is than ltfast.

pytest bench --benchmark-only
pytest bench --benchmark-only -k "agcl and 8142" --out DIR     # also results.json and table.txt
"""

import json
import os
import platform
import subprocess
from collections import defaultdict
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import ltfast


def pytest_addoption(parser):
    parser.addoption("--out", help="folder for results.json and table.txt")
    parser.addoption("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")


@pytest.fixture(scope="session")
def device(request) -> str:
    return request.config.getoption("--device")


@pytest.fixture(autouse=True)
def compile_afresh():
    """Past its limit of variants, torch.compile would run a function eagerly without a word."""
    torch._dynamo.reset()
    torch._dynamo.config.fail_on_recompile_limit_hit = True


@pytest.fixture
def step(benchmark, device) -> Callable[..., None]:
    """Times ``function``; the first call, with its compilation, stays apart."""

    def run(function: Callable[[], object], *, group: str, implementation: str, moved: int) -> None:
        benchmark.group = group
        benchmark.extra_info.update(implementation=implementation, device=device, bytes=moved)

        def timed() -> None:
            function()
            if device == "cuda":
                torch.cuda.synchronize()

        timed()
        benchmark(timed)

    return run


def machine() -> dict[str, object]:
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    else:
        lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
        name = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.machine())
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return {
        "machine": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa": ltfast.ops.backends.native().isa(),
        "ltfast": ltfast.__version__,
        "commit": commit or "unknown",
        "torch": torch.__version__,
        "triton": version("triton") if find_spec("triton") else "not installed",
        "python": platform.python_version(),
    }


def pytest_terminal_summary(terminalreporter, config):
    session = getattr(config, "_benchmarksession", None)
    if session is None or not session.benchmarks:
        return
    groups: dict[str, dict[str, dict]] = defaultdict(dict)
    for bench in session.benchmarks:
        info = bench.extra_info
        median, low, high = bench.stats.median, bench.stats.q1, bench.stats.q3
        groups[bench.group][info["implementation"]] = {
            "median_ms": median * 1e3,
            "q1_ms": low * 1e3,
            "q3_ms": high * 1e3,
            "rounds": bench.stats.rounds,
            "gb_per_s": info["bytes"] / median / 1e9,
        }
    lines = [f"{'':44}{'median ms':>12}{'q1':>10}{'q3':>10}{'GB/s':>9}{'/ ltfast':>10}"]
    for group, rows in groups.items():
        ours = rows.get("ltfast", {}).get("median_ms")
        lines.append(group)
        for name, row in rows.items():
            ratio = f"{row['median_ms'] / ours:9.2f}x" if ours else ""
            row["times_ltfast"] = row["median_ms"] / ours if ours else None
            times = f"{row['median_ms']:12.3f}{row['q1_ms']:10.3f}{row['q3_ms']:10.3f}"
            lines.append(f"    {name:40}{times}{row['gb_per_s']:9.1f}{ratio}")
    about = machine()
    lines.append(", ".join(f"{key} {value}" for key, value in about.items()))
    terminalreporter.section("medians side by side")
    for line in lines:
        terminalreporter.line(line)
    if config.getoption("--out"):
        out = Path(config.getoption("--out"))
        out.mkdir(parents=True, exist_ok=True)
        (out / "results.json").write_text(json.dumps({"machine": about, "groups": groups}, indent=2) + "\n")
        (out / "table.txt").write_text("\n".join(lines) + "\n")
