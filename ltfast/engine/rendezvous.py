"""Joins the processes of a group that `torchrun` starts, and starts again when one of them dies."""

import os
import time
from uuid import uuid4

import torch
from torch import distributed
from torch.distributed import Backend, PrefixStore, Store, TCPStore

_ATTEMPT = "ltfast/attempt"
_SECONDS = 300


def join_group() -> None:
    """Set up `torch.distributed` in a process that torchrun started; do nothing in any other.

    torchrun keeps one store for all of its attempts. A restarted process finds the addresses of dead processes there,
    and fails to connect or waits forever (github.com/pytorch/pytorch/issues/135712). Each attempt therefore uses a part
    of the store with a new name.

    Raises:
        TimeoutError, RuntimeError: the first process has not joined within five minutes.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or distributed.is_initialized():
        return
    rank, processes = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    name = _lead(store, processes) if rank == 0 else _follow(store, rank)
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    backend = Backend.default_device_backend_map["cpu" if accelerator is None else accelerator.type]
    distributed.init_process_group(backend, store=PrefixStore(name, store), rank=rank, world_size=processes)


def _lead(store: Store, processes: int) -> str:
    """Name a new attempt, and confirm it to every other process of it."""
    attempt = uuid4().hex
    store.set(_ATTEMPT, attempt)
    for rank in range(1, processes):
        other = store.get(f"{attempt}/{rank}").decode()  # waits for the process
        store.set(f"{attempt}/{other}", "confirmed")
    return attempt


def _follow(store: Store, rank: int) -> str:
    """The attempt that the first process confirms. The first name in the store may belong to a dead process."""
    own, deadline = uuid4().hex, time.monotonic() + _SECONDS
    attempt = ""
    while time.monotonic() < deadline:
        named = store.get(_ATTEMPT).decode()  # waits for the first process of all
        if named != attempt:
            attempt = named
            store.set(f"{attempt}/{rank}", own)
        if store.check([f"{attempt}/{own}"]):
            return attempt
        time.sleep(0.01)
    raise TimeoutError(f"the first process has not joined within {_SECONDS} seconds")
