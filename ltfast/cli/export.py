"""`ltfast export`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ltfast.cli.errors import UsageError
from ltfast.cli.options import Option, add_option
from ltfast.cli.output import check_writable
from ltfast.cli.parser import command_parser
from ltfast.terminal import say

ABOUT = "export a trained model as a PyTorch program that runs without ltfast"


def export(argv: Sequence[str]) -> int:
    from ltfast.engine import RunSettings

    parser = command_parser("export", ABOUT)
    parser.add_argument("--checkpoint", required=True, help="folder of a run, or its checkpoint file")
    parser.add_argument(
        "--out",
        default="model.pt2",
        help="file to write, for torch.export.load: maps normalised images (B, channels, H, W) to class scores (B, C); "
        "it contains ltfast.json with the classes, mean and std",
    )
    parser.add_argument("--root", help="folder of the test images, for --aggregate group, as for `ltfast train`; "
                        "default: the run's")  # fmt: skip
    add_option(
        parser,
        Option(
            "aggregate",
            Literal["instance", "group", "average"],
            None,
            "weights of the sub-models of method do, see `ltfast eval`; with instance, the program also takes two "
            "augmented views of each image; group learns from the test images during the export; default: the run's",
        ),
    )
    args = parser.parse(argv)
    out = Path(args.out)
    if out.is_dir():
        raise UsageError(f"--out: expected a file name, got the folder {args.out!r}")
    check_writable(out.parent)

    import torch

    from ltfast.engine.export import export_predictor, save_program
    from ltfast.runs.restore import restore, restore_with_test_images

    checkpoint, run = Path(args.checkpoint), RunSettings()
    trained = restore(checkpoint, run=run, aggregate=args.aggregate)
    if trained.predictor.adapts:
        trained = restore_with_test_images(checkpoint, run=run, root=args.root, aggregate=args.aggregate)
    if trained.unfinished is not None:
        say(f"{args.checkpoint}: {trained.unfinished}")
    predictor, facts = trained.predictor.eval(), trained.facts
    with torch.no_grad():
        predictor.adapt(batch[:-1] for batch in trained.plan.test)
    shape = (facts["channels"], trained.image_size, trained.image_size)
    names = ("class_names", "mean", "std")
    about = {**{name: facts[name] for name in names}, "image_shape": list(shape), "views": predictor.views}
    save_program(out, export_predictor(predictor, shape), about)
    say(f"written to {out}: {predictor.views} x {shape} -> {len(facts['class_names'])} class scores")
    return 0
