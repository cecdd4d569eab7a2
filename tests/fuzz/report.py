"""What a run says at its end: how many cases each op had, and the case in which a process died."""

import os
import time
from pathlib import Path

WATCHED = Path(".hypothesis/fuzz")  # where a case lies while it runs
STARTED = time.time()


def runs(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def pytest_terminal_summary(terminalreporter):
    reports = [report for of_kind in terminalreporter.stats.values() for report in of_kind]
    counts = dict(x for report in reports for x in getattr(report, "user_properties", ()) if x[0].startswith("fuzz "))
    if counts and "FUZZ_CASES" in os.environ:
        terminalreporter.section(f"{sum(counts.values())} cases")
        for name, number in sorted(counts.items()):
            terminalreporter.write_line(f"{number:6} {name.removeprefix('fuzz ')}")
    for path in sorted(WATCHED.glob("*.txt")):
        if path.stat().st_mtime >= STARTED and not runs(int(path.stem)):
            terminalreporter.section("a process died in this case", red=True)
            terminalreporter.write_line(path.read_text())
