"""`killed_train.py STEP ... -- ARGUMENTS` runs `ltfast ARGUMENTS` once per STEP, killed after that optimiser step;
STEP 0 lets it finish. The runs are forked children, since importing torch only once saves time."""

import os
import signal
import sys

import sklearn.datasets  # noqa: F401  (as the packages below: a run imports it, here once for all children)
import torch

from ltfast import cli, data, losses, methods, models  # noqa: F401
from ltfast.engine.loop import _Run


def main():
    split = sys.argv.index("--")
    for stop in map(int, sys.argv[1:split]):
        child = os.fork()
        if child == 0:
            left = [stop]

            def step(*arguments, whole=_Run._step, left=left):
                logged = whole(*arguments)
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return logged

            _Run._step = step
            os._exit(cli.main(sys.argv[split + 1 :]))
        _, status = os.waitpid(child, 0)
        print(f"child {os.waitstatus_to_exitcode(status)}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
