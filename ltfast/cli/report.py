"""`ltfast report`, `ltfast report importance` and `ltfast report prompts`."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ltfast.cli.errors import UsageError
from ltfast.cli.options import Option, add_options, options_of
from ltfast.cli.output import picture_at, print_table
from ltfast.cli.parser import command_parser, did_you_mean
from ltfast.terminal import say

ABOUT = (
    "write report.html for a finished run, or compare several; `report importance` shows the importance of their "
    "parameters to class groups, `report prompts` the prompts that classes choose"
)
_IMPORTANCE = "show the importance of the parameters of trained runs to many, medium and few classes"
_PROMPTS = "show which group prompts the test images of each class choose in a run of method lpt"


def compare(argv: Sequence[str]) -> int:
    reports = {"importance": importance, "prompts": prompts}
    if argv and argv[0] in reports:
        return reports[argv[0]](argv[1:])
    parser = command_parser("report", ABOUT)
    parser.add_argument("runs", nargs="+", help="folders of finished runs; the first is the baseline of the comparison")
    parser.add_argument("--picture", help="picture to write, with the accuracy of each run on each class")
    args = parser.parse(argv)
    if (near := did_you_mean(args.runs[0], reports)) and not Path(args.runs[0]).exists():
        raise UsageError(f"{args.runs[0]!r} is not a run or a report{near}")

    picture = None if args.picture is None else picture_at(args.picture, "--picture")

    from ltfast.engine import plot, report

    rows = {run: report.read_metrics(Path(run)) for run in args.runs}
    first, *others = args.runs
    other = next((run for run in others if rows[run]["class_counts"] != rows[first]["class_counts"]), None)
    if picture is not None and other is not None:
        raise UsageError(f"--picture: expected runs with equal class counts, got different ones in {first} and {other}")
    print_table(report.table(rows, title="top-1 accuracy (%), and times"))
    for run in args.runs:
        say(f"accuracy of each class: {Path(run) / report.PICTURE}")
    names = {run: Path(run).name for run in rows}
    unique = len(set(names.values())) == len(names)
    if sentence := report.comparison({names[run] if unique else run: row for run, row in rows.items()}):
        say(sentence)
    if picture is not None and plot.plot_comparison(picture, rows):
        say(f"comparison of the runs: {picture}")
    if len(args.runs) == 1:
        _write_page(Path(first), rows[first])
    return 0


def _write_page(folder: Path, metrics: dict[str, Any]) -> None:
    if "classes" not in metrics:
        say(
            f"{folder} was evaluated by an older version, so there is no report.html: delete its metrics.json and "
            "repeat its command to evaluate it again"
        )
        return
    if not os.access(folder, os.W_OK):
        say(f"{folder} is not writable, so there is no report.html")
        return

    from ltfast.cli.command import command_of
    from ltfast.runs.page import PAGE, write_page

    write_page(folder, metrics, command_of(metrics, folder))
    say(f"report with pictures and tables: {folder / PAGE}")


def importance(argv: Sequence[str]) -> int:
    from ltfast.engine import RunSettings

    parser = command_parser("report importance", _IMPORTANCE)
    parser.add_argument("checkpoints", nargs="+", help="folders of runs, or their checkpoint files")
    parser.add_argument("--out", default="importance.png", help="picture to write; the values go to a .json file "
                        "with the same name")  # fmt: skip
    parser.add_argument("--root", help="folder of downloads and of the images in lists; default: the runs'")
    execution = [
        Option("images", int, 2048, "maximum number of training images used per group or class"),
        Option("batch_size", int, 64, "images per batch"),
        Option("per_class", bool, False, "also write the importance to each class to the .json file"),
        *(option for option in options_of(RunSettings) if option.name == "workers"),
    ]
    add_options(parser, "execution", execution)
    args = parser.parse(argv)
    picture = picture_at(args.out)

    from ltfast.engine import plot, report
    from ltfast.runs.importance import measure

    rows = {
        name: measure(
            Path(name),
            run=RunSettings(workers=args.workers),
            images=args.images,
            batch_size=args.batch_size,
            per_class=args.per_class,
            root=args.root,
        )
        for name in args.checkpoints
    }
    numbers = picture.with_suffix(".json")
    report.write_json(numbers, rows)
    print_table(report.importance_table(rows))
    for name, row in rows.items():
        if row["weights"] is not None:
            print_table(report.weights_table(name, row["weights"]))
    drawn = plot.plot_importance(picture, rows)
    say(f"written to {picture} and {numbers}" if drawn else f"written to {numbers}")
    return 0


def prompts(argv: Sequence[str]) -> int:
    from ltfast.engine import RunSettings

    parser = command_parser("report prompts", _PROMPTS)
    parser.add_argument("checkpoint", help="folder of a run, or its checkpoint file")
    parser.add_argument("--out", default="prompts.png", help="picture to write; the values go to a .json file with "
                        "the same name")  # fmt: skip
    parser.add_argument("--root", help="folder of downloads and of the images in lists; default: the run's")
    execution = [option for option in options_of(RunSettings) if option.name == "workers"]
    add_options(parser, "execution", execution)
    args = parser.parse(argv)
    picture = picture_at(args.out)

    from ltfast.engine import plot, report
    from ltfast.runs.prompt_choices import choices

    names, shares = choices(Path(args.checkpoint), run=RunSettings(workers=args.workers), root=args.root)
    numbers = picture.with_suffix(".json")
    report.write_json(numbers, {"class_names": names, "shares": shares})
    drawn = plot.plot_choices(picture, shares, names)
    used = sum(any(row[key] > 0 for row in shares) for key in range(len(shares[0])))
    say(f"{used} of {len(shares[0])} keys are chosen; written to {f'{picture} and ' if drawn else ''}{numbers}")
    return 0
