"""Every Triton kernel compiles for GPUs that are not here, with the Triton of constraints.txt: without spills, and with
no more instructions than bench/results/kernels.json says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ops.conftest import NO_TRITON

pytestmark = pytest.mark.skipif(NO_TRITON is not None, reason=str(NO_TRITON))
ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "bench/count_kernels.py"
RESULTS = ROOT / "bench/results/kernels.json"
TARGETS = ["sm_80", "sm_90", "sm_100", "gfx942"]


def is_pinned() -> bool:
    """Whether Triton is the one for which the launches are chosen: another allots registers a little differently."""
    import triton

    return f"triton=={triton.__version__}" in (ROOT / "constraints.txt").read_text().split()


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_every_kernel_compiles_as_it_is_launched(target):
    from machine_code import MACHINES

    # In a process of its own: this one may have Triton's interpreter switched on.
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    result = subprocess.run([sys.executable, SCRIPT, target], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    *rows, last = map(json.loads, result.stdout.splitlines())
    assert last == {"never launched": []}
    assert len(rows) > 100
    assert all(row["registers"] > 0 for row in rows)
    assert [row for row in rows if row["floats"]] == []  # without the annotation "fp64": rounded to float32
    assert [row for row in rows if row["shared_bytes"] > MACHINES[target].program_shared] == []
    assert [row for row in rows if row["spills"]] == []
    assert [row for row in rows if row["local_bytes"] > (0 if is_pinned() else 128)] == []
    if is_pinned():
        counted = json.loads(RESULTS.read_text())[target]
        # `python bench/count_kernels.py` counts again, after a kernel has changed
        assert {row["kernel"] for row in rows} == set(counted)
        assert [row for row in rows if exceeds(row, counted[row["kernel"]])] == []


def exceeds(row: dict, counted: dict) -> bool:
    return row.get("per_element", 0) > 1.05 * counted.get("per_element", 0) or row["blocks"] < counted["blocks"]
