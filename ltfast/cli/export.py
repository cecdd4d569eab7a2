"""`ltfast export`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ltfast.cli.errors import UsageError
from ltfast.cli.options import CALIBRATION, Option, add_option
from ltfast.cli.output import check_writable
from ltfast.cli.parser import command_parser
from ltfast.terminal import say

ABOUT = "export a trained model as a PyTorch or ONNX program that runs without ltfast, from pixels to probabilities"


def export(argv: Sequence[str]) -> int:
    from ltfast.engine import RunSettings

    parser = command_parser("export", ABOUT)
    parser.add_argument("--checkpoint", required=True, help="folder of a run, or its checkpoint file")
    parser.add_argument("--out", default="model.pt2", help="file to write: .pt2, for torch.export.load, or .onnx, "
                        "which needs pip install 'ltfast[onnx]'; it contains the classes, mean and std as ltfast.json "
                        "(default: model.pt2)")  # fmt: skip
    parser.add_argument("--root", help="folder of the test images, for --aggregate group, as for `ltfast train`; "
                        "default: the run's")  # fmt: skip
    own = [
        Option("raw", bool, False, "without preprocessing and softmax: normalised float32 images (B, channels, size, "
               "size) in, class scores (B, C) out; otherwise uint8 images (B, channels, H, W) of any size in, "
               "probabilities (B, C) out"),
        Option("aggregate", Literal["instance", "group", "average"], None, "weights of the sub-models of method do, "
               "see `ltfast eval`; instance needs --raw, and the program then also takes two augmented views of each "
               "image; group learns from the test images during the export; default: the run's"),
        CALIBRATION,
    ]  # fmt: skip
    for option in own:
        add_option(parser, option)
    args = parser.parse(argv)
    out = Path(args.out)
    if out.is_dir():
        raise UsageError(f"--out: expected a file name, got the folder {args.out!r}")
    check_writable(out.parent)

    import torch

    from ltfast.runs.calibration import calibrated
    from ltfast.runs.export import FORMATS, export_run, write_export
    from ltfast.runs.onnx_files import OPSET, check_packages
    from ltfast.runs.restore import restore, restore_with_test_images

    if out.suffix not in FORMATS:
        raise UsageError(f"--out: expected a file name that ends with {' or '.join(FORMATS)}, got {args.out!r}")
    if out.suffix == ".onnx":
        check_packages()
    checkpoint, run = Path(args.checkpoint), RunSettings()
    trained = restore(checkpoint, run=run, aggregate=args.aggregate)
    if trained.predictor.adapts:
        trained = restore_with_test_images(checkpoint, run=run, root=args.root, aggregate=args.aggregate)
    trained, calibration = calibrated(trained, checkpoint, args.aggregate) if args.calibration else (trained, None)
    if trained.unfinished is not None:
        say(f"{args.checkpoint}: {trained.unfinished}")
    if calibration is not None:
        say(f"calibrated by {calibration}")
    predictor, facts = trained.predictor.eval(), trained.facts
    with torch.no_grad():
        predictor.adapt(batch[:-1] for batch in trained.plan.test)
    checked = write_export(out, export_run(trained, calibration, raw=args.raw), trained)
    classes, channels, size = len(facts["class_names"]), facts["channels"], trained.image_size
    if args.raw:
        what = f"{predictor.views} x {(channels, size, size)} -> {classes} class scores"
    else:
        what = f"uint8 images (B, {channels}, H, W) -> probabilities (B, {classes})"
    opset = f", opset {OPSET}" if out.suffix == ".onnx" else ""
    say(f"written to {out}: {what}{opset}; {checked}")
    return 0
