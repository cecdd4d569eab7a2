"""Stand-ins for NVIDIA's tools in a dry run of `make gpu-check`. They refuse options that the tools do not have, and
run the program.

    python bench/gpu_check_tools.py {compute-sanitizer,ncu} ...
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable


def spelt(prefix: str) -> Callable[[str], str]:
    """The type of an option whose value begins so."""

    def check(value: str) -> str:
        if not value.startswith(prefix):
            raise argparse.ArgumentTypeError(f"expected {prefix}..., got {value}")
        return value

    return check


def main(tool: str, words: list[str]) -> int:
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
    sys.exit(main(sys.argv[1], sys.argv[2:]))
