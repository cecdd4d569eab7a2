"""`launch.py SCENARIOS -- ARGUMENTS` runs `ltfast ARGUMENTS` in two processes with torchrun's launcher, once per
scenario. The workers are forked from a server, since importing torch only once saves time.

SCENARIOS is JSON, a list of `{"out": folder, "restarts": n, "faults": [[restart, rank, step, who, signal], ...]}`:
after `restart` restarts, the process with rank `rank` sends the signal to `who` ("self" or "launcher") after optimiser
step `step`. `"second": [...]` appends arguments for the second process. The output has one line of JSON per scenario
with its outcome.
"""

import json
import multiprocessing
import os
import signal
import sys
import time

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


def worker(arguments, out, faults, second, launcher):
    import torch

    from ltfast import cli
    from ltfast.engine.loop import _Run

    torch.set_num_threads(1)
    attempt, rank = int(os.environ["TORCHELASTIC_RESTART_COUNT"]), int(os.environ["RANK"])
    due = {step: (who, number) for restart, place, step, who, number in faults if (restart, place) == (attempt, rank)}
    done = [0]

    def step(*arguments, whole=_Run._step):
        logged = whole(*arguments)
        done[0] += 1
        if done[0] in due:
            who, number = due[done[0]]
            os.kill(os.getpid() if who == "self" else launcher, signal.Signals[number])
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
            arguments = sys.argv[split + 1 :], scenario["out"], scenario["faults"], scenario.get("second", [])
            elastic_launch(config, worker)(*arguments, os.getpid())
        except ChildFailedError as error:
            end = f"rank {error.get_first_failure()[0]} failed: {error.get_first_failure()[1].exitcode}"
        except SignalException as error:
            end = f"stopped by {error.sigval.name}"
        print(json.dumps({"end": end, "seconds": time.monotonic() - begun}), flush=True)


if __name__ == "__main__":
    main()
