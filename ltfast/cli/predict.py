"""`ltfast predict`."""

from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from ltfast.cli.errors import UsageError
from ltfast.cli.options import CALIBRATION, Crops, Option, add_option, add_options, execution_options
from ltfast.cli.output import check_writable
from ltfast.cli.parser import command_parser
from ltfast.terminal import say

ABOUT = "classify images with a trained checkpoint; repeat the command to continue an interrupted one"
OUT = "predictions.csv"


def predict(argv: Sequence[str]) -> int:
    from ltfast.engine import RunSettings, check

    parser = command_parser("predict", ABOUT)
    parser.add_argument("paths", nargs="+", metavar="PATH", help="image files; folders, with their subfolders; .txt "
                        "files with one path per line; .csv or .tsv files with a column path")  # fmt: skip
    parser.add_argument("--checkpoint", required=True, help="folder of a run, or its checkpoint file")
    parser.add_argument("--out", default=OUT, help="file to write: .csv, .json (one object per line) or .parquet "
                        f"(needs pyarrow) (default: {OUT})")  # fmt: skip
    parser.add_argument("--prior", help="correct the probabilities for images whose classes are distributed like the "
                        "training images (train), uniformly (uniform), or like the weights in a CSV file with the "
                        "columns class and weight; default: no correction")  # fmt: skip
    own = [
        Option("top", int, 3, "number of classes per image, the most probable first"),
        Option("tta", int | Crops, 1, "test-time augmentation. A number: mean of the probabilities over this number of "
               "variants of each image: itself, its mirror image, and random crops. five_crop or ten_crop: mean of the "
               "class scores over crops of the corners and the centre, see `ltfast eval`"),
        Option("abstain", float | Literal["calibrated"], 0.0, "leave the class empty if its probability is lower; "
               "calibrated: than the threshold of `ltfast calibrate`"),
        Option("thresholds", bool, False, "leave the class empty if its probability is lower than the threshold that "
               "`ltfast calibrate` has chosen for it"),
        CALIBRATION,
        Option("aggregate", Literal["instance", "average"], None, "weights of the sub-models of method do, see "
               "`ltfast eval`; default: the run's"),
    ]  # fmt: skip
    for option in own:
        add_option(parser, option)
    add_options(parser, "execution", execution_options("images per batch; crops, with --tta five_crop"))
    args = parser.parse(argv)
    run = RunSettings(precision=args.precision, workers=args.workers)
    for name in ("top", "tta", "batch_size"):
        value = getattr(args, name)
        check(isinstance(value, str) or value >= 1, name, "at least 1", value)
    chosen = [
        name
        for name, asked in {"abstain": args.abstain == "calibrated", "thresholds": args.thresholds}.items()
        if asked
    ]
    if args.abstain != "calibrated":
        check(0 <= args.abstain <= 1, "abstain", "a probability from 0 to 1", args.abstain)
    if chosen and args.prior is not None:
        raise UsageError(
            f"--prior: expected none with {_given(chosen[0])}, whose thresholds hold for the class distribution of the "
            "images that calibrated the run"
        )
    out = Path(args.out)
    if out.is_dir():
        raise UsageError(f"--out: expected a file name, got the folder {args.out!r}")
    check_writable(out.parent)

    from ltfast.engine.accelerator import make_accelerator
    from ltfast.engine.console import Console
    from ltfast.engine.interrupt import graceful_interrupt
    from ltfast.runs import load
    from ltfast.runs.calibration import digest_of
    from ltfast.runs.image_paths import ImagePaths
    from ltfast.runs.predict import Row, predictions
    from ltfast.runs.prediction_files import check_format, write_predictions
    from ltfast.runs.prior import prior_shift

    check_format(out)
    paths = ImagePaths(args.paths)
    accelerator = make_accelerator(run.precision)
    if accelerator.num_processes > 1:
        raise UsageError(f"ltfast predict runs in one process, not in {accelerator.num_processes}; divide the images")
    classifier = load(args.checkpoint, accelerator.device, aggregate=args.aggregate, calibration=args.calibration)
    calibration = classifier.calibration
    abstain, thresholds = _thresholds(args, calibration, chosen)
    if calibration is not None:
        say(f"calibrated by {calibration}")
    shift = None if args.prior is None else prior_shift(classifier.trained, args.prior)
    top = min(args.top, len(classifier.class_names))
    counts = {"images": 0, "broken": 0, "without a class": 0}
    with graceful_interrupt(alone=True) as interrupt, Console().progress() as progress:
        task = progress.add_task("predicting", total=len(paths))

        def batches(done: int) -> Iterator[list[Row]]:
            if done:
                say(f"{out} has {done} of {len(paths)} rows: {'continuing' if done < len(paths) else 'nothing to do'}")
            progress.update(task, completed=done)
            for rows in predictions(
                classifier,
                paths,
                skip=done,
                top=top,
                tta=args.tta,
                shift=shift,
                abstain=abstain,
                thresholds=thresholds,
                batch_size=args.batch_size,
                workers=run.workers,
                autocast=accelerator.autocast,
            ):
                yield rows
                counts["images"] += len(rows)
                counts["broken"] += sum(row.error is not None for row in rows)
                counts["without a class"] += sum(row.classes[:1] == [""] for row in rows)
                progress.update(task, completed=done + counts["images"])
                if interrupt.asked and done + counts["images"] < len(paths):
                    raise KeyboardInterrupt

        settings: dict[str, Any] = {
            "checkpoint": digest_of(Path(args.checkpoint)),
            **{name: getattr(args, name) for name in ("top", "tta", "abstain", "aggregate", "precision")},
            "calibration": calibration and calibration.digest,
            "thresholds": args.thresholds or None,  # files of older versions have neither
            "prior": None if shift is None else f"{args.prior}, {sha256(shift.numpy().tobytes()).hexdigest()[:16]}",
        }
        write_predictions(out, batches, paths, settings, top=top)
    if counts["images"]:
        left = ", ".join(f"{number} {what}" for what, number in counts.items() if what != "images" and number)
        say(f"written to {out}: {counts['images']} images{f', of which {left}' if left else ''}")
    return 0


def continues(out: str | None) -> bool:
    """Whether the same command continues a file that an interrupted one has left."""
    path = Path(OUT if out is None else out)
    return path.suffix != ".parquet" and path.is_file()


def _thresholds(args: Any, calibration: Any, chosen: Sequence[str]) -> tuple[float, list[float] | None]:
    """The least probability of any class, and of each class if --thresholds asks for it."""
    if chosen and not args.calibration:
        raise UsageError(f"{_given(chosen[0])}: expected none with --no-calibration")
    if chosen and calibration is None:
        raise UsageError(f"{_given(chosen[0])}: expected a run with a calibration: `{_command(args)}` makes one")
    if args.thresholds and calibration.thresholds is None:
        raise UsageError(
            f"--thresholds: the calibration of {args.checkpoint} has none; `{_command(args)} --class-precision 0.9` "
            "chooses them"
        )
    return (
        calibration.abstain if args.abstain == "calibrated" else args.abstain,
        calibration.thresholds if args.thresholds else None,
    )


def _given(name: str) -> str:
    return "--abstain calibrated" if name == "abstain" else "--thresholds"


def _command(args: Any) -> str:
    return f"ltfast calibrate --checkpoint {args.checkpoint}"
