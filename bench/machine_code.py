"""What a compiled Triton kernel needs of a GPU, read from its machine code. No GPU is needed."""

import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"


@dataclass(frozen=True)
class Machine:
    """A kind of GPU.

    Attributes:
        target: what Triton compiles for.
        program_shared: the largest shared memory of a program, in bytes.
        shared, registers, threads, blocks: what a multiprocessor has. Registers are 32 bits wide.
        register_step, reserved: the granularity of a thread's registers; shared memory that each program takes besides
            its own, in bytes.
    """

    target: GPUTarget
    program_shared: int
    shared: int
    registers: int
    threads: int
    blocks: int
    register_step: int = 8
    reserved: int = 1024


# CUDA C++ Programming Guide, "Compute Capabilities"; CDNA 3 instruction set architecture, sections 1 and 3.6
MACHINES = {
    "sm_80": Machine(GPUTarget("cuda", 80, 32), 163 * 1024, 164 * 1024, 65_536, 2048, 32),
    "sm_90": Machine(GPUTarget("cuda", 90, 32), 227 * 1024, 228 * 1024, 65_536, 2048, 32),
    "sm_100": Machine(GPUTarget("cuda", 100, 32), 227 * 1024, 228 * 1024, 65_536, 2048, 32),
    "gfx942": Machine(GPUTarget("hip", "gfx942", 64), 64 * 1024, 64 * 1024, 131_072, 2048, 32, reserved=0),
}


@dataclass(frozen=True)
class Usage:
    """What one program of a kernel takes.

    Attributes:
        threads: threads of a program.
        registers: vector registers of a thread.
        local_bytes: memory of a thread: its stack, and registers spilled to it.
        shared_bytes: shared memory of a program.
        spills: vector registers spilled. (A scalar register of gfx942 may rest in a vector register, which is not
            memory.)
        blocks: programs that fit on a multiprocessor at once.
        instructions: of the part of the code in which a thread spends its time; see ``hot_instructions``.
    """

    threads: int
    registers: int
    local_bytes: int
    shared_bytes: int
    spills: int
    blocks: int
    instructions: int


@dataclass(frozen=True)
class Instruction:
    address: int
    name: str
    jump: int | None  # the address of the next instruction if a branch is taken


def usage(compiled: Any, machine: Machine) -> Usage:
    """The usage of a ``CompiledKernel`` of Triton."""
    shared = compiled.metadata.shared
    threads = compiled.metadata.num_warps * machine.target.warp_size
    if machine.target.backend == "hip":
        text = compiled.asm["amdgcn"]
        registers, local, spills = (
            int(re.search(rf"\.{field}:\s+(\d+)", text)[1])
            for field in ("vgpr_count", "private_segment_fixed_size", "vgpr_spill_count")
        )
        instructions = _amd_instructions(text)
    else:
        report, listing = _dump(compiled.asm["cubin"], "-res-usage"), _dump(compiled.asm["cubin"], "-sass")
        registers, stack, memory = (
            int(re.search(rf"\b{field}:(\d+)", report)[1]) for field in ("REG", "STACK", "LOCAL")
        )
        local, spills = stack + memory, 0  # a spilled register is in local memory
        instructions = _nvidia_instructions(listing)
    step = machine.register_step
    limits = [machine.blocks, machine.threads // threads]
    limits.append(machine.registers // (-(-registers // step) * step * threads))
    if shared:
        limits.append(machine.shared // (shared + machine.reserved))
    return Usage(threads, registers, local, shared, spills, min(limits), hot_instructions(instructions))


def hot_instructions(code: Sequence[Instruction]) -> int:
    """The instructions of the innermost loops, if they are more than a quarter of the code; else of the longest loop,
    if this is; else of all of it.

    A kernel that reads a long row in blocks is its loops, each of which goes over the row once. A kernel that holds a
    row in registers has no loop, or only short ones besides; or it walks over rows, with short loops inside.
    """
    loops = {(x.jump, x.address) for x in code if x.jump is not None and x.jump < x.address}
    inner = [a for a in loops if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    longest = sorted(loops, key=lambda loop: loop[1] - loop[0])[-1:]
    for chosen in (inner, longest):
        inside = sum(any(first <= x.address <= last for first, last in chosen) for x in code)
        if 4 * inside > len(code):
            return inside
    return len(code)


def _dump(cubin: bytes, flag: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([TOOLS / "cuobjdump", flag, file.name], check=True, capture_output=True, text=True).stdout


def _nvidia_instructions(listing: str) -> list[Instruction]:
    found, called = [], []
    for line in re.finditer(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_.]+)([^;]*);", listing):
        address, name, operands = int(line[1], 16), line[2], line[3]
        place = re.search(r"\b0x([0-9a-f]+)\s*$", operands)
        if name.startswith("CALL") and place:
            called.append(int(place[1], 16))
        jump = int(place[1], 16) if name.split(".")[0] == "BRA" and place else None
        if name != "NOP" and jump != address:  # the end of the code is filled with NOPs behind a branch to itself
            found.append(Instruction(address, name, jump))
    # functions, for the rare cases of roots and divisions, are behind the kernel
    return [x for x in found if x.address < min(called, default=x.address + 1)]


def _amd_instructions(text: str) -> list[Instruction]:
    found, labels, jumps = [], {}, []
    for line in text.partition("s_endpgm")[0].splitlines():
        if label := re.match(r"(\.LBB\w+):", line):
            labels[label[1]] = len(found)
        elif instruction := re.match(r"\t([a-z]\w+)(?:\s+(\.LBB\w+))?", line):
            jumps.append(instruction[2])
            found.append(instruction[1])
    return [Instruction(i, name, labels.get(jump)) for i, (name, jump) in enumerate(zip(found, jumps, strict=True))]
