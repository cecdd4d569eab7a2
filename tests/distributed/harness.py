"""Runs functions in several processes that communicate through gloo."""

import gc
import importlib.util
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

# Processes are forked from a server that has imported torch and has no threads.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["ltfast.losses", "ltfast.engine.loop", "ltfast.methods.batches", "ltfast.models", "torch.distributed.nn", "pytest"]
)


def run_processes(function: Callable[..., Any], processes: int, *arguments: Any, timeout: float = 120.0) -> list[Any]:
    """Run `function(rank, *arguments)` in each of several processes of one gloo group.

    With one process there is no group, as in a script that does not use `torch.distributed`. Each process has one
    thread, and the environment variables that `torchrun` would set.

    Args:
        function: a function at the top level of an importable file.
        processes: number of processes.
        arguments: tensors and plain values (types that `torch.load` accepts with `weights_only`), as are the results.
        timeout: seconds for all processes together.

    Returns:
        The result of each process, in rank order.

    Raises:
        AssertionError: a process failed or timed out; the message has the standard error of all processes.
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        torch.save(arguments, folder / "arguments.pt")
        source = (function.__code__.co_filename, function.__name__)
        children = [
            _CONTEXT.Process(target=_child, args=(folder, rank, processes, *source)) for rank in range(processes)
        ]
        end = time.monotonic() + timeout
        try:
            for child in children:
                child.start()
            running = list(children)
            while running:
                ready = wait([child.sentinel for child in running], timeout=max(end - time.monotonic(), 0))
                late = not ready
                running = [child for child in running if child.sentinel not in ready]
                if late or any(child.exitcode for child in children if child not in running):
                    raise AssertionError(_describe(folder, children, f"in {timeout} s" if late else "well"))
        finally:
            for child in children:
                if child.pid is not None:
                    child.kill()
                    child.join()
        return [torch.load(folder / f"result{rank}.pt", weights_only=True) for rank in range(processes)]


def _child(folder: Path, rank: int, processes: int, file: str, name: str) -> None:
    gc.freeze()  # the modules that the server has imported: scanning them all takes longer than most tests
    errors = os.open(folder / f"errors{rank}", os.O_WRONLY | os.O_CREAT)
    os.dup2(errors, 2)
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path.insert(0, str(Path(file).parent))
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    if processes > 1:
        for variable, value in (("RANK", rank), ("WORLD_SIZE", processes)):
            os.environ[variable] = os.environ[f"LOCAL_{variable}"] = str(value)
        torch.distributed.init_process_group(  # per device, as with Accelerate; get_backend() has no name for it
            "cpu:gloo", init_method=f"file://{folder}/store", rank=rank, world_size=processes
        )
    result = getattr(module, name)(rank, *torch.load(folder / "arguments.pt", weights_only=True))
    torch.save(result, folder / f"result{rank}.pt")
    if processes > 1:
        torch.distributed.barrier()  # the first process to leave would close the connections of the others
        torch.distributed.destroy_process_group()


def _describe(folder: Path, children: list[Any], how: str) -> str:
    lines = [f"expected {len(children)} processes to end {how}"]
    for rank, child in enumerate(children):
        code = child.exitcode
        lines.append(f"--- process {rank}: {'still running' if code is None else f'exit status {code}'}")
        path = folder / f"errors{rank}"
        lines.append(path.read_text() if path.exists() else "")
    return "\n".join(lines)
