"""Compiles the Triton kernels for a GPU that is not here and prints what each uses, a JSON object a line.

python triton_compile.py {sm_80,sm_90,sm_100,gfx942}

The ops' own launchers are called, so every kernel has the signature, the constants and the options of a real launch.
"""

import importlib
import json
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

import torch
import triton
from stand_in_driver import Launch, launches_on
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from ltfast import ops
from ltfast.ops.catalog import OPS

SHARED = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}  # bytes of a program
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


@dataclass
class Usage:
    registers: int
    local_bytes: int  # per-thread memory: the stack, and registers spilled to it
    shared_bytes: int
    spills: int  # vector registers spilled; gfx942's scalar registers may rest in vector lanes, which is no memory


def usage(started: Launch, target: str) -> Usage:
    compiled = started.compiled
    if target.startswith("gfx"):
        text = compiled.asm["amdgcn"]

        def field(name: str) -> int:
            return int(re.search(rf"\.{name}:\s+(\d+)", text).group(1))

        return Usage(
            field("vgpr_count"),
            field("private_segment_fixed_size"),
            compiled.metadata.shared,
            field("vgpr_spill_count"),
        )
    cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        report = subprocess.run(
            [cuobjdump, "-res-usage", cubin.name], check=True, capture_output=True, text=True
        ).stdout
    stack, local = (int(re.search(rf"\b{name}:(\d+)", report).group(1)) for name in ("STACK", "LOCAL"))
    registers = int(re.search(r"\bREG:(\d+)", report).group(1))
    # what NVIDIA's compiler spills, it spills to local memory
    return Usage(registers, stack + local, compiled.metadata.shared, 0)


def kernels() -> set[JITFunction]:
    """Every kernel of ltfast: the functions of Triton that are called `_..._kernel`."""
    found = set()
    for module in pkgutil.walk_packages(ops.__path__, "ltfast.ops."):
        if module.name.endswith(".triton"):
            values = vars(importlib.import_module(module.name)).values()
            found |= {x for x in values if isinstance(x, JITFunction) and x.__name__.endswith("_kernel")}
    return found


def floats_without_type(started: Launch) -> list[str]:
    """The Python floats that a launch passes on as float32: it does so without an annotation, and loses digits."""
    return [k for k, v in started.arguments.items() if isinstance(v, float) and started.signature[k] != "fp64"]


def cases() -> Iterator[str]:
    """Calls the launchers of every op. Yields a label after each call."""
    for op in OPS:
        if op.launches is not None:
            # taylor's launchers read the addresses of their tensors, which fake ones do not have
            with nullcontext() if op.in_place else FakeTensorMode():
                yield from op.launches()


def main(target: str) -> None:
    hip = mock.patch.object(torch.version, "hip", "7") if target.startswith("gfx") else nullcontext()
    known, launched = set(), set()
    with launches_on(TARGETS[target]) as launches, hip:
        for label in cases():
            for started in launches:
                launched.add(started.kernel)
                if id(started.compiled) in known:
                    continue
                known.add(id(started.compiled))
                facts = {"kernel": f"{label}: {started.kernel.__name__}", "floats": floats_without_type(started)}
                limits = {"target": target, "shared_limit": SHARED[target]}
                print(json.dumps({**facts, **limits, **asdict(usage(started, target))}), flush=True)
            launches.clear()
    print(json.dumps({"never launched": sorted(x.__name__ for x in kernels() - launched)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
