"""`ltfast eval`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ltfast.cli.errors import UsageError
from ltfast.cli.options import CALIBRATION, Crops, Option, add_option, add_options, as_columns, execution_options
from ltfast.cli.output import check_writable, print_table
from ltfast.cli.parser import command_parser
from ltfast.terminal import say

ABOUT = "evaluate a trained checkpoint on test images"


def evaluate(argv: Sequence[str]) -> int:
    from ltfast.engine import RunSettings, check

    parser = command_parser("eval", ABOUT)
    parser.add_argument("--checkpoint", required=True, help="folder of a run, or its checkpoint file")
    parser.add_argument("--data", help="use the test images of this data set (with the same classes); default: the "
                        "run's data")  # fmt: skip
    parser.add_argument("--root", help="folder of downloads and of the images in lists; default: the run's")
    parser.add_argument("--columns", help="names of the columns of csv:, such as path=filename,label=species; default: "
                        "the run's")  # fmt: skip
    parser.add_argument("--class-names", help="text file with one class name per line in the order of the labels, for "
                        "the data or the run, if the classes of one of them are only numbered")  # fmt: skip
    parser.add_argument(
        "--skip-broken",
        action="store_true",
        default=None,
        help="decode all test images first, and skip those that cannot be decoded; default: the run's setting",
    )
    parser.add_argument("--out", help="JSON file to write; the predictions go to a file beside it whose name ends with "
                        "_predictions.csv; default: eval.json in the folder of the checkpoint")  # fmt: skip
    add_option(
        parser,
        Option(
            "aggregate",
            Literal["instance", "group", "average"],
            None,
            "weights of the sub-models of method do: learned per test image, learned per group of test images, or "
            "equal; default: the run's",
        ),
    )
    add_option(
        parser,
        Option(
            "tta",
            Crops | None,
            None,
            "test-time ensemble: mean of the class scores over five crops of each image, its corners and its centre, "
            "whose short side is first resized to 248 / 224 of the size of a crop; ten_crop: with their mirror images",
        ),
    )
    add_option(parser, CALIBRATION)
    add_options(parser, "execution", execution_options("test images per batch and process; crops, with --tta"))
    args = parser.parse(argv)
    run = RunSettings(precision=args.precision, workers=args.workers)
    check(args.batch_size >= 1, "batch_size", "at least 1", args.batch_size)
    checkpoint = Path(args.checkpoint)
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    out = folder / "eval.json" if args.out is None else Path(args.out)

    from ltfast.engine import identity, metrics, report
    from ltfast.engine.accelerator import make_accelerator
    from ltfast.evaluation.measures import measures
    from ltfast.evaluation.outcome import Outcome
    from ltfast.evaluation.predictions import write_predictions
    from ltfast.evaluation.scores import Scores
    from ltfast.methods import BuildContext
    from ltfast.runs.calibration import calibrated
    from ltfast.runs.crops import with_crops
    from ltfast.runs.restore import groups_of, restore_with_test_images

    accelerator = make_accelerator(run.precision)
    trained = restore_with_test_images(
        checkpoint,
        run=run,
        batch_size=args.batch_size,
        source=args.data,
        root=args.root,
        columns=as_columns(args.columns),
        class_names=args.class_names,
        aggregate=args.aggregate,
        skip_broken=args.skip_broken,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    trained, calibration = calibrated(trained, checkpoint, args.aggregate) if args.calibration else (trained, None)
    if args.tta is not None:
        context = BuildContext(run, accelerator.process_index, accelerator.num_processes, args.batch_size)
        trained = with_crops(trained, args.tta, context)
    identity.check_processes(
        {
            **trained.settings,
            "data": trained.source,
            "aggregate": args.aggregate,
            "tta": args.tta,
            "precision": run.precision,
            "unfinished": trained.unfinished,
            "calibration": calibration and calibration.digest,
        },
        accelerator,
        hint="Start all of them with the same command",
    )
    if out.is_dir():
        raise UsageError(f"--out: expected a file name, got the folder {args.out!r}")
    check_writable(out.parent)
    if accelerator.is_main_process:
        if trained.unfinished is not None:
            say(f"{checkpoint}: {trained.unfinished}")
        if trained.left_out is not None:
            say(trained.left_out)
        if calibration is not None:
            say(f"calibrated by {calibration}")
    names = trained.facts["class_names"]
    predictor = trained.predictor.to(accelerator.device)
    groups = groups_of(trained.facts)
    scores = Scores(len(names))
    result = metrics.evaluate(predictor, trained.plan.test, groups, len(names), accelerator, scores.add)
    found = scores.gathered(accelerator)
    if found is not None:
        outcome = Outcome(*found, predictor.score_scale)
        result |= measures(outcome, names, trained.facts["class_counts"], groups)
        result["groups"] = report.describe_groups(groups, trained.facts.get("group_minima"))
        rows = out.with_name(f"{out.stem}_predictions.csv")
        write_predictions(rows, outcome, names, trained.images.image_name)
        origin = {
            "data": trained.source,
            "checkpoint": str(checkpoint),
            "calibration": calibration and str(calibration),
            "tta": args.tta,
        }
        report.write_json(out, {**result, **origin})
        title = f"top-1 accuracy (%) on {trained.source}{'' if args.tta is None else f', {args.tta}'}"
        print_table(report.table({str(checkpoint): result}, title=title))
        say(f"written to {out} and {rows}")
    accelerator.end_training()
    return 0
