"""Every Triton kernel compiles for GPUs that are not here, as its launcher would have it.

With the Triton of constraints.txt, none spills registers but those of SPILLS.
"""

import json
import os
import pkgutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import ltfast.ops
from ops.conftest import NO_TRITON

pytestmark = pytest.mark.skipif(NO_TRITON is not None, reason=str(NO_TRITON))
SCRIPT = Path(__file__).parent / "triton_compile.py"
CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"

# Faults that are known: what a thread has of memory, in bytes, by target and case.
SPILLS: dict[str, dict[str, int]] = {}


def has_pinned_triton() -> bool:
    """Launches are chosen for one Triton; the compiler of another allots registers a little differently."""
    import triton

    return f"triton=={triton.__version__}" in CONSTRAINTS.read_text().split()


def kernels() -> set[str]:
    """Those of the ops that are launched, which their names tell: they are what ``name_kernel`` is, anywhere."""
    from triton.runtime.jit import KernelInterface

    found = set()
    for module in pkgutil.walk_packages(ltfast.ops.__path__, "ltfast.ops."):
        if module.name.endswith(".triton"):
            members = vars(import_module(module.name)).items()
            found |= {
                f"{module.name}.{name}"
                for name, value in members
                if isinstance(value, KernelInterface)
                and name.endswith("_kernel")
                and value.fn.__module__ == module.name
            }
    return found


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_kernels_compile_without_spills(target):
    # In a process of its own: this one may have Triton's interpreter switched on.
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    result = subprocess.run([sys.executable, SCRIPT, target], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    memory: dict[str, int] = {}
    for row in rows:
        print(row)
        name = f"{row['case']}: {row['kernel'].split('.')[-1]}"
        memory[name] = max(memory.get(name, 0), row["local_bytes"])
    assert {row["kernel"] for row in rows} == kernels()
    assert all(row["registers"] > 0 for row in rows)
    assert [row for row in rows if row["shared_bytes"] > row["shared_limit"]] == []
    # a launch rounds Python floats to float32 unless their annotation is "fp64", and float64 results with them
    assert [row for row in rows if not {"fp32", "fp16", "bf16"}.isdisjoint(row["signature"].values())] == []
    assert [row for row in rows if row["spills"] and not row["local_bytes"]] == []
    if has_pinned_triton():
        assert {name: used for name, used in memory.items() if used} == SPILLS.get(target, {})
    else:
        assert [name for name, used in memory.items() if used > 128] == []
