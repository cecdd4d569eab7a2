"""Calibration error before and after `ltfast calibrate`, per method: a Markdown table.

python bench/calibration.py digits DIR [OPTION ...]
python bench/calibration.py cifar10-lt DIR --root data

Trains the recipe of each method with a fifth of its long-tailed training images for validation, calibrates the run on
them, and measures on the balanced test images. OPTIONs are further options of `ltfast train`, for every method. On
CIFAR-10-LT, the methods have the epochs of SHORT instead of their recipe's, so that two CPU cores need about half an
hour. The runs are in DIR, and the table is DIR/calibration.md. If it is stopped, the same command continues.
"""

import sys
from contextlib import nullcontext
from pathlib import Path

from ltfast.cli import main as ltfast
from ltfast.engine import RunSettings
from ltfast.runs import calibrate
from ltfast.runs.calibration import calibrated
from ltfast.runs.prior import prior_shift

METHODS = {"ce": [], "proco": [], "dscl": [], "livt": [], "lift": [], "lpt": [], "do": ["--aggregate", "average"]}
COSINE = ["--schedule", "cosine", "--warmup-epochs", "1"]
SHORT = {
    "ce": ["--epochs", "6", *COSINE],
    "proco": ["--epochs", "2", "--lr", "0.1", *COSINE],
    "dscl": ["--epochs", "2", "--classifier-epochs", "2", *COSINE],
    "livt": ["--pretrain-epochs", "3", "--pretrain-warmup-epochs", "1", "--epochs", "4", *COSINE],
    "lift": ["--epochs", "2"],
    "lpt": ["--epochs", "1", "--group-epochs", "1"],
    "do": ["--epochs", "2", "--later-epochs", "1", "--prune-epochs", "1"],
}
COLUMNS = {"expected_calibration_error": "ECE", "negative_log_likelihood": "NLL", "accuracy": "accuracy"}
VARIANTS = {"none": "uncalibrated", "temperature": "temperature", "vector": "vector, `--prior uniform`"}


def run(words: list[str]) -> None:
    if ltfast(words) != 0:
        raise SystemExit(f"ltfast {' '.join(words)} failed")


def measured(checkpoint: Path, method: str) -> dict[str, float]:
    """The measures of a run on its test images."""
    if method != "none":
        run(["calibrate", "--checkpoint", str(checkpoint), "--method", method])
    facts = calibrate.restore(checkpoint, run=RunSettings()).facts
    test = calibrate.other_images(checkpoint, source=facts["source"], run=RunSettings())
    trained, _ = calibrated(test.trained, checkpoint) if method != "none" else (test.trained, None)
    scores, labels = calibrate.scores_of(trained.predictor.eval(), test.batches, nullcontext)
    if method == "vector":
        scores = scores + prior_shift(trained, "uniform")
    return calibrate.measures(scores, labels)


def cell(name: str, value: float) -> str:
    return f"{value:.2f}" if name == "negative_log_likelihood" else f"{100 * value:.1f} %"


def main() -> None:
    recipe, folder, *options = sys.argv[1:]
    heads = [f"{head}, {variant}" for head in COLUMNS.values() for variant in VARIANTS.values()]
    lines = [f"| method | {' | '.join(heads)} |", "| --- " * (1 + len(heads)) + "|"]
    for method, own in METHODS.items():
        to = Path(folder, method)
        encoder = ["--init", f"{folder}/livt"] if method in ("lift", "lpt") else []
        short = SHORT[method] if recipe == "cifar10-lt" else []
        words = ["--config", f"{method}/{recipe}", "--validation", "0.2", *own, *encoder, *short, *options]
        run(["train", *words, "--out", str(to)])
        results = {variant: measured(to, variant) for variant in VARIANTS}
        cells = [cell(name, result[name]) for name in COLUMNS for result in results.values()]
        lines.append(f"| `{method}` | {' | '.join(cells)} |")
        Path(folder, "calibration.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
