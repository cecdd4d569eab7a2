"""Runs the ablation of decoupled optimisation (table 8 of the paper) on the digits: sampling, loss and aggregation.

python bench/ablation_do.py docs/do_ablation.md
"""

import json
import statistics
import sys
import tempfile
from pathlib import Path

import torch

from ltfast.cli import main as ltfast

SEEDS = (0, 1, 2)
COLUMNS = {"many": "many", "medium": "medium", "few": "few", "top1": "all"}
# (sampling of the middle stage, loss)
VARIANTS = [
    ("group_preferred", "compensation"),
    ("class_balanced", "compensation"),
    ("group_preferred", "cross_entropy"),
    ("class_balanced", "cross_entropy"),
]
KINDS = ("instance", "group", "average")


def run(words: list[str]) -> None:
    if ltfast(words) != 0:
        raise SystemExit(f"ltfast {' '.join(words)} failed")


def row(cells: list[str], results: list[dict]) -> str:
    for key in COLUMNS:
        values = [result[key] for result in results]
        cells.append(f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    out = Path(sys.argv[1])
    torch.set_num_threads(1)
    lines = [
        "| method | sampling of the middle stage | loss | aggregation | " + " | ".join(COLUMNS.values()) + " |",
        "| --- " * (4 + len(COLUMNS)) + "|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        baseline, epochs = [], 0
        variants = {variant: {kind: [] for kind in KINDS} for variant in VARIANTS}
        for seed in SEEDS:
            for variant in VARIANTS:
                to = f"{folder}/{'_'.join(variant)}_{seed}"
                sampler, loss = variant
                run(["train", "--config", "do/digits", "--sampler", sampler, "--loss", loss, "--seed", str(seed),
                     "--out", to])  # fmt: skip
                settings = json.loads(Path(to, "metrics.json").read_text())["settings"]
                epochs = settings["epochs"] + 2 * (settings["prune_epochs"] + settings["later_epochs"])
                for kind in KINDS:
                    run(["eval", "--checkpoint", to, "--aggregate", kind])
                    variants[variant][kind].append(json.loads(Path(to, "eval.json").read_text()))
            to = f"{folder}/ce_{seed}"
            run(["train", "--config", "ce/digits", "--epochs", str(epochs), "--seed", str(seed), "--out", to])
            baseline.append(json.loads(Path(to, "metrics.json").read_text()))
    lines.append(row(["cross-entropy", "", "", ""], baseline))
    for (sampler, loss), kinds in variants.items():
        lines += [row(["DO", sampler, loss, kind], results) for kind, results in kinds.items()]
    out.write_text(
        "# Ablation of decoupled optimisation\n\n"
        "Top-1 accuracy in percent on the digits, subsampled to imbalance 50 (`do/digits`): mean and standard\n"
        f"deviation over seeds {SEEDS}. Every run trains on the same number of images ({epochs} epochs). Made by\n"
        f"`python bench/ablation_do.py {out}`.\n\n" + "\n".join(lines) + "\n"
    )


if __name__ == "__main__":
    main()
