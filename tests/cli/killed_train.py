"""`killed_train.py STEP ... -- ARGUMENTS`: `ltfast ARGUMENTS`, killed after its STEP-th optimiser step, time and again;
STEP 0 lets it come to its end. The runs are forked children, as importing torch once saves time."""

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
