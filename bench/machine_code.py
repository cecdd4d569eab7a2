"""What a compiled Triton kernel needs of a GPU, read from its machine code. No GPU is needed."""

import re
import struct
import subprocess
import tempfile
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget

SPECIAL = ("MUFU", "v_exp", "v_log", "v_rcp", "v_rsq", "v_sqrt")  # instructions of exponentials, logarithms and roots
PRODUCTS = ("HGMMA", "QGMMA", "HMMA", "DMMA", "UTCHMMA", "UTCQMMA", "v_mfma")  # of matrices
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"


Loop = tuple[int, int]  # the addresses of its first and last instruction


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


def usages(kernels: Sequence[Any], machine: Machine) -> list[Usage]:
    """The usage of each of several ``CompiledKernel`` of Triton."""
    if machine.target.backend == "hip":
        codes = [_amd_instructions(kernel.asm["amdgcn"]) for kernel in kernels]
    else:
        codes = _nvidia_instructions([kernel.asm["cubin"] for kernel in kernels], machine.target.arch)
    return [_usage(kernel, code, machine) for kernel, code in zip(kernels, codes, strict=True)]


def _usage(compiled: Any, code: Sequence[Instruction], machine: Machine) -> Usage:
    shared = compiled.metadata.shared
    threads = compiled.metadata.num_warps * machine.target.warp_size
    if machine.target.backend == "hip":
        text = compiled.asm["amdgcn"]
        registers, local, spills = (
            int(re.search(rf"\.{field}:\s+(\d+)", text)[1])
            for field in ("vgpr_count", "private_segment_fixed_size", "vgpr_spill_count")
        )
    else:
        report = _run_tool("cuobjdump", "-res-usage", content=compiled.asm["cubin"])
        registers, stack, memory = (
            int(re.search(rf"\b{field}:(\d+)", report)[1]) for field in ("REG", "STACK", "LOCAL")
        )
        local, spills = stack + memory, 0  # a spilled register is in local memory
    step = machine.register_step
    limits = [machine.blocks, machine.threads // threads]
    limits.append(machine.registers // (-(-registers // step) * step * threads))
    if shared:
        limits.append(machine.shared // (shared + machine.reserved))
    return Usage(threads, registers, local, shared, spills, min(limits), hot_instructions(code))


def hot_instructions(code: Sequence[Instruction]) -> int:
    """The instructions of the part of the code that handles the elements, each of them once.

    A kernel that reads a long row in blocks is its innermost loops, each of which goes over the row once. A kernel that
    walks over rows is its outermost loop. A kernel that holds its only row in registers is all of its code. Loops
    without exponentials, in a kernel that has some, count labels or add losses, and do not count here. A kernel of
    matrix products is its shortest outermost loop: tiles that need masks have a loop of their own.
    """
    every = {(x.jump, x.address) for x in code if x.jump is not None and x.jump < x.address}
    inner = [a for a in every if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in every)]
    outer = [a for a in every if not any(b != a and b[0] <= a[0] and a[1] <= b[1] for b in every)]
    if products := _with(PRODUCTS, outer, code):
        return min(sum(first <= x.address <= last for x in code) for first, last in products)
    beside = set(inner) - set(_with(SPECIAL, inner, code)) if _with(SPECIAL, [(0, code[-1].address)], code) else set()
    counted = [x.address for x in code if not any(first <= x.address <= last for first, last in beside)]
    for loops in (inner, outer):
        inside = sum(any(first <= place <= last for first, last in loops) for place in counted)
        if 4 * inside > len(counted):
            return inside
    return len(counted)


def _with(names: tuple[str, ...], loops: Sequence[Loop], code: Sequence[Instruction]) -> list[Loop]:
    """The loops that contain an instruction whose name starts with one of these."""
    places = [x.address for x in code if x.name.startswith(names)]
    return [loop for loop in loops if any(loop[0] <= place <= loop[1] for place in places)]


def _run_tool(tool: str, *options: str, content: bytes) -> str:
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        return subprocess.run([TOOLS / tool, *options, file.name], check=True, capture_output=True, text=True).stdout


def _nvidia_instructions(cubins: Sequence[bytes], arch: int) -> list[list[Instruction]]:
    """The instructions of each kernel. The disassembler takes most of a second to start, so it gets the code of all at
    once. The addresses are those in the whole."""
    codes = [_machine_code(cubin) for cubin in cubins]
    starts = list(accumulate(map(len, codes), initial=0))
    model = f"SM{arch}a" if arch >= 90 else f"SM{arch}"
    listing = _run_tool("nvdisasm", "--binary", model, content=b"".join(codes)) if codes else ""
    found: list[list[Instruction]] = [[] for _ in codes]
    called: list[list[int]] = [[] for _ in codes]
    for line in re.finditer(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_.]+)([^;]*);", listing):
        address, name, operands = int(line[1], 16), line[2], line[3]
        kernel = bisect_right(starts, address) - 1
        place = re.search(r"\b0x([0-9a-f]+)\s*$", operands)
        if name.startswith("CALL") and place:
            called[kernel].append(int(place[1], 16))
        jump = int(place[1], 16) if name.split(".")[0] == "BRA" and place else None
        if name != "NOP" and jump != address:  # the end of the code is filled with NOPs behind a branch to itself
            found[kernel].append(Instruction(address, name, jump))
    # functions, for the rare cases of roots and divisions, are behind the kernel
    return [
        [x for x in code if x.address < min(functions, default=x.address + 1)]
        for code, functions in zip(found, called, strict=True)
    ]


def _machine_code(cubin: bytes) -> bytes:
    """The content of the section .text of a kernel's ELF file."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, number, of_names = struct.unpack_from("<HHH", cubin, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + i * size) for i in range(number)]
    names = sections[of_names][4]
    (code,) = [s for s in sections if cubin.startswith(b".text.", names + s[0])]
    return cubin[code[4] : code[4] + code[5]]


def _amd_instructions(text: str) -> list[Instruction]:
    found, labels, jumps = [], {}, []
    for line in text.partition("s_endpgm")[0].splitlines():
        if label := re.match(r"(\.LBB\w+):", line):
            labels[label[1]] = len(found)
        elif instruction := re.match(r"\t([a-z]\w+)(?:\s+(\.LBB\w+))?", line):
            jumps.append(instruction[2])
            found.append(instruction[1])
    return [Instruction(i, name, labels.get(jump)) for i, (name, jump) in enumerate(zip(found, jumps, strict=True))]
