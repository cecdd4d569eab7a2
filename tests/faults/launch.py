"""`launch.py SCENARIOS -- ARGUMENTS` runs `ltfast ARGUMENTS` in two processes with torchrun's launcher, once per
scenario. The workers are forked from a server, since importing torch only once saves time.

SCENARIOS is JSON, a list of `Scenario`s. The output has one line of JSON per scenario with its outcome.
"""

import json
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import dataclass

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

PRELOAD = [
    "ltfast.cli",
    "ltfast.data",
    "ltfast.engine.loop",
    "ltfast.losses",
    "ltfast.methods.batches",
    "ltfast.models",
]


@dataclass(frozen=True)
class Fault:
    """After so many restarts of the group, the process of this rank sends the signal once it has done so many steps."""

    restarts: int
    rank: int
    steps: int
    to: str  # "self" or "launcher"
    signal: str


@dataclass(frozen=True)
class Scenario:
    """A run: its folder, how often the group may restart, and what happens to it."""

    out: str
    restarts: int = 0
    faults: tuple[Fault, ...] = ()
    second: tuple[str, ...] = ()  # arguments that only the second process has; they come last


def worker(arguments, out, faults, second, launcher):
    import torch

    from ltfast import cli
    from ltfast.engine import loop
    from ltfast.engine.loop import _Run

    torch.set_num_threads(1)
    loop.time_losses = lambda *arguments: None  # half of a tiny run's time
    place = int(os.environ["TORCHELASTIC_RESTART_COUNT"]), int(os.environ["RANK"])
    rank = place[1]
    due = {fault["steps"]: fault for fault in faults if (fault["restarts"], fault["rank"]) == place}
    done = [0]

    def step(*arguments, whole=_Run._step):
        logged = whole(*arguments)
        done[0] += 1
        if fault := due.get(done[0]):
            os.kill(os.getpid() if fault["to"] == "self" else launcher, signal.Signals[fault["signal"]])
        return logged

    _Run._step = step
    status = cli.main([*arguments, "--out", out, *(second if rank == 1 else [])])
    if status:
        time.sleep(0.5)  # else the launcher may end the other before it has said anything
        sys.exit(status)


def main():
    split = sys.argv.index("--")
    multiprocessing.set_forkserver_preload(PRELOAD)
    for scenario in json.loads(sys.argv[1]):
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=2,
            max_restarts=scenario["restarts"],
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            monitor_interval=0.05,
            start_method="forkserver",
        )
        begun, end = time.monotonic(), "finished"
        try:
            arguments = sys.argv[split + 1 :], scenario["out"], scenario["faults"], scenario["second"]
            elastic_launch(config, worker)(*arguments, os.getpid())
        except ChildFailedError as error:
            end = f"rank {error.get_first_failure()[0]} failed: {error.get_first_failure()[1].exitcode}"
        except SignalException as error:
            end = f"stopped by {error.sigval.name}"
        print(json.dumps({"end": end, "seconds": time.monotonic() - begun}), flush=True)


if __name__ == "__main__":
    main()
