"""A plugin of pytest for `make gpu-check`: a JSON line for each test, as soon as it is done."""

import json
import os
from pathlib import Path

# after one of these, every further call of CUDA in the process fails
FATAL = ("CUDA error: an illegal", "CUDA error: misaligned", "CUDA error: unspecified", "CUDA error: device-side")
_broken = False


def pytest_runtest_logreport(report):
    global _broken
    text = report.longreprtext if report.failed else ""
    if "PYTEST_XDIST_WORKER" in os.environ:
        _broken |= any(error in text for error in FATAL)
    elif report.when == "call" or report.outcome != "passed":
        line = {"test": report.nodeid, "when": report.when, "outcome": report.outcome, "seconds": report.duration}
        with (Path(os.environ["GPU_CHECK_OUT"]) / "results.jsonl").open("a") as file:
            print(json.dumps({**line, "text": text[-2000:]}), file=file)


def pytest_runtest_logfinish(nodeid):
    """A process whose GPU has failed would take the other processes' tests, and fail them all: it is replaced."""
    if _broken:
        os._exit(1)
