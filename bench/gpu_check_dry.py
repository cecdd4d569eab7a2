"""What a dry run of `make gpu-check` has: a Python with few packages, and stand-ins for NVIDIA's tools.

A stand-in calls this file:

    python bench/gpu_check_dry.py {compute-sanitizer,ncu} ARGUMENTS

It refuses options that the tool does not have, and runs the program.
"""

import argparse
import importlib.metadata as metadata
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

# with their dependencies; no linters, and nothing for the documentation
THERE = (
    "torch", "torchvision", "numpy", "accelerate", "hypothesis", "matplotlib", "mpmath", "ninja", "pillow", "psutil",
    "pybind11", "pytest", "pytest-benchmark", "pytest-xdist", "pyyaml", "rich", "safetensors", "scikit-build-core",
    "scikit-learn", "scipy", "tensorboard", "timm", "torchmetrics",
)  # fmt: skip


def bare_environment(folder: Path) -> str:
    """A Python with the packages of `THERE` alone, as links to this one's. Returns its path."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    todo, seen = list(THERE), set()
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        try:
            package = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # of another platform
        if name in seen:
            continue
        seen.add(name)
        todo += [re.match(r"[\w.-]+", text)[0] for text in package.requires or () if "extra ==" not in text]
        for file in package.files or ():
            if file.parts[0] != "..":
                file, target = Path(file.parts[0]), site / file.parts[0]
            elif "bin" in file.parts:
                target = folder / "bin" / file.name
            else:
                continue
            if not target.exists():
                target.symlink_to(Path(package.locate_file(file)).resolve())
    link_kernels(site)
    for tool in ("compute-sanitizer", "ncu", "nvcc"):  # nvcc is not called
        words = f'exec "{folder}/bin/python" "{Path(__file__).resolve()}" {tool} "$@"'
        (folder / "bin" / tool).write_text(f"#!/bin/sh\n{words}\n")
        (folder / "bin" / tool).chmod(0o755)
    return str(folder / "bin/python")


def link_kernels(site: Path) -> None:
    """Let a Python load the C++ kernels that are installed for this one, instead of building them."""
    kernels = importlib.util.find_spec("ltfast._native")
    if kernels is not None:
        load = (
            "import importlib.util as util, sys",
            f"spec = util.spec_from_file_location('ltfast._native', {kernels.origin!r})",
            "sys.modules[spec.name] = util.module_from_spec(spec)",
            "spec.loader.exec_module(sys.modules[spec.name])",
        )
        (site / "ltfast_kernels.pth").write_text("; ".join(load) + "\n")


def spelt(prefix: str) -> Callable[[str], str]:
    """The type of an option whose value begins so."""

    def check(value: str) -> str:
        if not value.startswith(prefix):
            raise argparse.ArgumentTypeError(f"expected {prefix}..., got {value}")
        return value

    return check


def run_tool(tool: str, words: list[str]) -> int:
    """The exit code of the tool."""
    parser = argparse.ArgumentParser(tool, allow_abbrev=False)
    if tool == "compute-sanitizer":
        parser.add_argument("--tool", choices=["memcheck", "racecheck"], required=True)
        parser.add_argument("--error-exitcode", type=int, required=True)
        parser.add_argument("--report-api-errors", choices=["all", "explicit", "no"])
        parser.add_argument("--kernel-name", type=spelt("regex="))
    else:
        parser.add_argument("--clock-control", choices=["none"], required=True)
        parser.add_argument("--set", choices=["full"])
        parser.add_argument("--profile-from-start", choices=["off"])
        parser.add_argument("--kernel-name", type=spelt("regex:"))
        parser.add_argument("--csv", action="store_true")
        parser.add_argument("--log-file")
    parser.add_argument("program", nargs=argparse.REMAINDER)
    options = parser.parse_args(words)
    if tool == "ncu":
        with open(options.log_file, "w") as file:
            print('"ID","Kernel Name"', file=file)
    elif "PYTORCH_NO_CUDA_MEMORY_CACHING" not in os.environ:
        parser.error("without PYTORCH_NO_CUDA_MEMORY_CACHING it sees no access beyond a tensor")
    elif "--past-the-end" in options.program:
        return options.error_exitcode  # the interpreter would write there
    return subprocess.run(options.program).returncode


if __name__ == "__main__":
    sys.exit(run_tool(sys.argv[1], sys.argv[2:]))
