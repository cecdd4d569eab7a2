"""Strong scaling: times complete training steps of the engine for a fixed global batch size and increasing numbers of
processes with one thread each.

python bench/scaling.py --out FILE.json
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch

from ltfast.benchmark.run import machine
from ltfast.data import ArrayDataset, DataBundle, class_groups
from ltfast.engine import RunSettings
from ltfast.engine.accelerator import make_accelerator
from ltfast.engine.loop import train
from ltfast.engine.seeding import seed_everything
from ltfast.methods import METHODS, BuildContext, settings_of

COUNTS = [1024, 512, 256, 128, 64, 32, 16, 8, 4, 4]
METHODS_AND_SETTINGS = {  # the first stage of each method is timed
    "proco": {"augment": "cifar", "contrast_augment": "simclr"},  # ResNet-32, three views
    "dscl": {"augment": "cifar"},  # ResNet-32, two views and five patches, a queue of 2,048 keys
    "lpt": {"augment": "cifar"},  # ViT-tiny with patches of 4 pixels, frozen
}
WARM_UP = 3


class Enough(Exception):
    """Ends the training after all steps are timed."""


def images() -> DataBundle:
    """Noise images of CIFAR's size in 10 classes with a long tail."""
    labels = torch.arange(len(COUNTS)).repeat_interleave(torch.tensor(COUNTS))
    pixels = np.random.default_rng(0).integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8)
    data = ArrayDataset(pixels, labels, [str(number) for number in range(len(COUNTS))])
    return DataBundle(data, data, (0.5,) * 3, (0.25,) * 3, image_size=32, channels=3)


def seconds_a_step(method: str, batch_size: int, steps: int) -> float:
    """The median time of a step in this process, including data and optimiser, while all processes run."""
    accelerator, run, bundle = make_accelerator("fp32"), RunSettings(), images()
    rank, processes = accelerator.process_index, accelerator.num_processes
    settings = settings_of(method, {**METHODS_AND_SETTINGS[method], "epochs": 2, "batch_size": batch_size // processes})
    seed_everything(run.seed)
    plan = METHODS[method].build(settings, bundle, BuildContext(run, rank, processes))
    stage, times = plan.stages[0], []
    if method == "lpt":
        stage.recall = lambda: None  # the times do not depend on how long the encoder was trained

    def clock() -> None:
        times.append(time.perf_counter())
        if len(times) == WARM_UP + steps:
            raise Enough

    stage.after_step = clock
    try:
        with tempfile.TemporaryDirectory() as out:
            train(
                plan,
                run=run,
                settings={},
                facts={"class_names": bundle.class_names},
                class_counts=COUNTS,
                groups=class_groups(COUNTS),
                out=Path(out),
                accelerator=accelerator,
            )
    except Enough:
        accelerator.end_training()
    return median(np.diff(times[WARM_UP - 1 :]).tolist())


def measure(method: str, processes: int, batch_size: int, steps: int) -> float:
    """`seconds_a_step` under torchrun."""
    words = ["--worker", method, "--batch-size", str(batch_size), "--steps", str(steps)]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    result = subprocess.run(
        [*launcher, __file__, *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return float(next(line for line in result.stdout.splitlines() if line.startswith("seconds ")).split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="JSON file with the figures")
    parser.add_argument("--methods", default=",".join(METHODS_AND_SETTINGS))
    parser.add_argument("--processes", default="1,2")
    parser.add_argument("--batch-size", type=int, default=64, help="images per step, over all processes")
    parser.add_argument("--steps", type=int, default=20, help="number of timed steps, after the warm-up")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        torch.set_num_threads(1)
        seconds = seconds_a_step(args.worker, args.batch_size, args.steps)
        if int(os.environ.get("RANK", 0)) == 0:
            print(f"seconds {seconds}", flush=True)
        return

    rows = []
    print("| method | processes | ms per step | images/s | speed-up | efficiency |")
    print("| --- " * 6 + "|")
    for method in args.methods.split(","):
        one = None
        for processes in map(int, args.processes.split(",")):
            seconds = measure(method, processes, args.batch_size, args.steps)
            one = one or seconds * processes  # ideal scaling relative to the first number of processes
            row = {
                "method": method,
                "processes": processes,
                "seconds": seconds,
                "images_per_second": args.batch_size / seconds,
                "speedup": one / seconds,
            }
            rows.append(row)
            print(
                f"| {method} | {processes} | {1e3 * seconds:.0f} | {row['images_per_second']:.1f} "
                f"| {row['speedup']:.2f} | {row['speedup'] / processes:.0%} |",
                flush=True,
            )
    if args.out:
        about = {**machine(torch.device("cpu")), "threads": 1, "batch_size": args.batch_size, "steps": args.steps}
        args.out.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
