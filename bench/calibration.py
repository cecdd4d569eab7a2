"""Calibration error before and after `ltfast calibrate`, per method: a Markdown table.

python bench/calibration.py digits OUT.md [OPTION ...]
python bench/calibration.py cifar10-lt OUT.md --root data --epochs 10

Trains the recipe of each method with a fifth of its long-tailed training images for validation, calibrates the run on
them, and measures on the balanced test images. OPTIONs are further options of `ltfast train`, for every method.
"""

import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

import torch

from ltfast.cli import main as ltfast
from ltfast.engine import RunSettings
from ltfast.runs import calibrate
from ltfast.runs.calibration import calibrated
from ltfast.runs.prior import prior_shift

METHODS = {"ce": [], "proco": [], "dscl": [], "livt": [], "lpt": [], "do": ["--aggregate", "average"]}
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
    recipe, out, *options = sys.argv[1:]
    torch.set_num_threads(1)
    heads = [f"{head}, {variant}" for head in COLUMNS.values() for variant in VARIANTS.values()]
    lines = [f"| method | {' | '.join(heads)} |", "| --- " * (1 + len(heads)) + "|"]
    with tempfile.TemporaryDirectory() as folder:
        for method, own in METHODS.items():
            to = Path(folder, method)
            encoder = ["--init", f"{folder}/livt"] if method == "lpt" else []
            words = ["--config", f"{method}/{recipe}", "--validation", "0.2", *own, *encoder, *options]
            run(["train", *words, "--out", str(to)])
            results = {variant: measured(to, variant) for variant in VARIANTS}
            cells = [cell(name, result[name]) for name in COLUMNS for result in results.values()]
            lines.append(f"| `{method}` | {' | '.join(cells)} |")
            Path(out).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
