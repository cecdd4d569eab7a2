"""Accuracy of every loss of `--method ce` on the long-tailed digits: a Markdown table.

python bench/losses.py OUT.md [OPTION ...]

Trains `ce/digits` with each loss and the seeds 0, 1 and 2. OPTIONs are further options of `ltfast train`, for every
run. A cell has the mean and the standard deviation over the seeds, in percent.
"""

import json
import statistics
import sys
import tempfile
from pathlib import Path

import torch

from ltfast.cli import main as ltfast

REWEIGHTED = ["--class-weights", "effective", "--defer-reweighting", "24"]  # the last fifth, as in LDAM-DRW
LOSSES = (
    "cross_entropy",
    "focal",
    "class_balanced",
    "class_balanced_focal",
    "ldam",
    "balanced_softmax",
    "vs",
    "lade",
    "gcl",
    "seesaw",
)
RUNS: dict[str, list[str]] = {
    **{name: [] for name in LOSSES},
    "cross_entropy " + " ".join(REWEIGHTED): REWEIGHTED,
    "ldam " + " ".join(REWEIGHTED): REWEIGHTED,
}
GROUPS = ("many", "medium", "few", "top1")
SEEDS = (0, 1, 2)


def measured(loss: str, options: list[str]) -> list[dict[str, float]]:
    """The metrics of a run for each seed."""
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in SEEDS:
            words = ["--config", "ce/digits", "--loss", loss, "--seed", str(seed), *options]
            if ltfast(["train", *words, "--out", f"{folder}/{seed}"]) != 0:
                raise SystemExit(f"ltfast train {' '.join(words)} failed")
            results.append(json.loads(Path(folder, str(seed), "metrics.json").read_text()))
    return results


def main() -> None:
    out, *options = sys.argv[1:]
    torch.set_num_threads(1)
    lines = ["| command | many | medium | few | all |", "| --- | --- | --- | --- | --- |"]
    for name, own in RUNS.items():
        results = measured(name.split()[0], [*own, *options])
        columns = [[result[group] for result in results] for group in GROUPS]
        cells = [f"{statistics.mean(column):.1f} ± {statistics.stdev(column):.1f}" for column in columns]
        lines.append(f"| `--config ce/digits --loss {name}` | {' | '.join(cells)} |")
        Path(out).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
