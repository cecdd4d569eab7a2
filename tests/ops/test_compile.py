"""Every Triton kernel compiles for GPUs that are not here, with the Triton of constraints.txt and without spills."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ops.conftest import NO_TRITON

pytestmark = pytest.mark.skipif(NO_TRITON is not None, reason=str(NO_TRITON))
SCRIPT = Path(__file__).parent / "triton_compile.py"
CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"


def local_bytes_allowed() -> int:
    """A thread's. Launches are chosen for one Triton; the compiler of another allots registers a little differently."""
    import triton

    return 0 if f"triton=={triton.__version__}" in CONSTRAINTS.read_text().split() else 128


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_every_kernel_compiles_as_it_is_launched_and_does_not_spill(target):
    # In a process of its own: this one may have Triton's interpreter switched on.
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    result = subprocess.run([sys.executable, SCRIPT, target], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    *usages, last = map(json.loads, result.stdout.splitlines())
    for usage in usages:
        print(usage)
    assert last == {"never launched": []}
    assert len(usages) > 100
    assert all(usage["registers"] > 0 for usage in usages)
    assert [usage for usage in usages if usage["floats"]] == []  # without the annotation "fp64": rounded to float32
    assert [usage for usage in usages if usage["shared_bytes"] > usage["shared_limit"]] == []
    assert [usage for usage in usages if usage["spills"]] == []
    assert [usage for usage in usages if usage["local_bytes"] > local_bytes_allowed()] == []
