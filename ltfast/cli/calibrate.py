"""`ltfast calibrate`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ltfast.cli.errors import UsageError
from ltfast.cli.options import Option, add_option, add_options, as_columns, execution_options
from ltfast.cli.output import check_writable
from ltfast.cli.parser import command_parser
from ltfast.terminal import say

ABOUT = "calibrate the probabilities of a trained checkpoint on its validation images, and choose thresholds"
_DATA_ONLY = ("columns", "class_names", "skip_broken")


def calibrate(argv: Sequence[str]) -> int:
    from ltfast.engine import RunSettings, check

    parser = command_parser("calibrate", ABOUT)
    parser.add_argument("--checkpoint", required=True, help="folder of a run, or its checkpoint file; calibration.json "
                        "is written beside the checkpoint")  # fmt: skip
    parser.add_argument("--data", help="use the test images of this data set (with the same classes); default: the "
                        "run's validation images")  # fmt: skip
    parser.add_argument("--root", help="folder of downloads and of the images in lists; default: the run's")
    parser.add_argument("--columns", help="names of the columns of csv:, such as path=filename,label=species, for "
                        "--data; default: the run's")  # fmt: skip
    parser.add_argument("--class-names", help="text file with one class name per line in the order of the labels, for "
                        "--data or the run, if the classes of one of them are only numbered")  # fmt: skip
    parser.add_argument("--skip-broken", action="store_true", default=None, help="skip images of --data that cannot be "
                        "decoded; default: the run's setting")  # fmt: skip
    own = [
        Option("method", Literal["temperature", "vector"], "temperature", "temperature scaling, one number; or vector "
               "scaling, a scale and a bias of each class"),
        Option("abstain_accuracy", float, 0.95, "top-1 accuracy of the images that `ltfast predict --abstain "
               "calibrated` gives a class"),
        Option("class_precision", float | None, None, "precision of each class with `ltfast predict --thresholds`"),
        Option("class_recall", float | None, None, "recall of each class with `ltfast predict --thresholds`"),
        Option("aggregate", Literal["instance", "average"], None, "weights of the sub-models of method do, see "
               "`ltfast eval`; default: the run's"),
    ]  # fmt: skip
    for option in own:
        add_option(parser, option)
    add_options(parser, "execution", execution_options("images per batch"))
    args = parser.parse(argv)
    run = RunSettings(precision=args.precision, workers=args.workers)
    check(args.batch_size >= 1, "batch_size", "at least 1", args.batch_size)
    targets: dict[Literal["precision", "recall"], float | None] = {
        "precision": args.class_precision,
        "recall": args.class_recall,
    }
    for name, value in {
        "abstain_accuracy": args.abstain_accuracy,
        **{f"class_{n}": v for n, v in targets.items()},
    }.items():
        check(value is None or 0 < value <= 1, name, "a number above 0 and up to 1", value)
    given = [(name, value) for name, value in targets.items() if value is not None]
    if len(given) == 2:
        raise UsageError("--class-recall: expected none with --class-precision, since a class has one threshold")
    if args.data is None and (unused := [name for name in _DATA_ONLY if getattr(args, name) is not None]):
        raise UsageError(f"--{unused[0].replace('_', '-')}: expected none without --data")
    checkpoint = Path(args.checkpoint)

    from ltfast.engine.accelerator import make_accelerator
    from ltfast.runs import calibrate as calibration
    from ltfast.runs.calibration import file_of

    accelerator = make_accelerator(run.precision)
    if accelerator.num_processes > 1:
        raise UsageError(f"ltfast calibrate runs in one process, not in {accelerator.num_processes}")
    common = {"run": run, "batch_size": args.batch_size, "root": args.root, "aggregate": args.aggregate}
    if args.data is None:
        images = calibration.validation_images(checkpoint, **common)
    else:
        images = calibration.other_images(
            checkpoint,
            source=args.data,
            columns=as_columns(args.columns),
            class_names=args.class_names,
            skip_broken=args.skip_broken,
            **common,
        )
    check_writable(file_of(checkpoint).parent, "--checkpoint")
    if images.trained.unfinished is not None:
        say(f"{args.checkpoint}: {images.trained.unfinished}")
    content = calibration.calibrate(
        checkpoint,
        images,
        method=args.method,
        accuracy=args.abstain_accuracy,
        target=given[0] if given else None,
        device=accelerator.device,
        autocast=accelerator.autocast,
    )
    for line in calibration.summary(content):
        say(line)
    say(f"written to {file_of(checkpoint)}; predict, eval and export use it, unless --no-calibration")
    return 0
