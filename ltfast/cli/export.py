"""`ltfast export`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ltfast.cli.errors import UsageError
from ltfast.cli.options import Option, add_option
from ltfast.cli.output import check_writable
from ltfast.cli.parser import command_parser
from ltfast.terminal import say

ABOUT = "write a trained model as a PyTorch program, which needs no ltfast to run"


def export(argv: Sequence[str]) -> int:
    from ltfast.engine import RunSettings

    parser = command_parser("export", ABOUT)
    parser.add_argument("--checkpoint", required=True, help="a run's folder, or its checkpoint file")
    parser.add_argument(
        "--out",
        default="model.pt2",
        help="file to write, for torch.export.load: images (B, channels, H, W), normalised, to class scores (B, C); "
        "ltfast.json in it has the classes, mean and std",
    )
    parser.add_argument("--root", help="folder of downloads and of the images that lists name; default: the run's")
    add_option(
        parser,
        Option(
            "aggregate",
            Literal["instance", "group", "average"],
            None,
            "weights of the sub-models of method do, see `ltfast eval`; instance takes two augmented views of each "
            "image as well, group learns from the test images now; default: the run's",
        ),
    )
    args = parser.parse(argv)
    out = Path(args.out)
    if out.is_dir():
        raise UsageError(f"--out: expected a file's name, got the folder {args.out!r}")
    check_writable(out.parent)

    import torch

    from ltfast.engine.export import export_predictor, save_program
    from ltfast.runs.restore import restore

    trained = restore(Path(args.checkpoint), run=RunSettings(), root=args.root, aggregate=args.aggregate)
    if trained.unfinished is not None:
        say(f"{args.checkpoint}: {trained.unfinished}")
    predictor, facts = trained.predictor.eval(), trained.facts
    with torch.no_grad():
        predictor.adapt(batch[:-1] for batch in trained.plan.test)
    image = next(iter(trained.plan.test))[0][0]
    names = ("class_names", "mean", "std")
    about = {**{name: facts[name] for name in names}, "image_shape": list(image.shape), "views": predictor.views}
    save_program(out, export_predictor(predictor, image.shape), about)
    say(f"written to {out}: {predictor.views} x {tuple(image.shape)} -> {len(facts['class_names'])} class scores")
    return 0
