"""The command line: `ltfast train | eval | export | report | bench | info`."""

import argparse
import dataclasses
import json
import os
import re
import sys
import traceback
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib import resources
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, get_args, get_origin, get_type_hints

import ltfast

if TYPE_CHECKING:
    import jsonargparse
    import torch
    from rich.table import Table

# Whatever is slow to import (torch, timm, ...) is imported by the command that needs it.

_EXTRA = {"accelerate", "jsonargparse", "matplotlib", "rich", "safetensors", "sklearn", "tensorboard", "timm",
          "torchmetrics", "torchvision", "yaml", "PIL"}  # fmt: skip


class UsageError(ValueError):
    """What the user asked for cannot be done."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


@dataclasses.dataclass(frozen=True)
class _Option:
    name: str
    type: Any
    default: Any
    help: str


_DATA = (
    _Option(
        "data",
        str,
        "digits",
        "digits (built in), cifar10, cifar100, npz:FILE, folder:DIR, list:FILE, torch/NAME or hfds/NAME",
    ),
    _Option(
        "imbalance",
        float | None,
        None,
        "cut the training images to a long tail: the largest class's count over the smallest's; none: as they are",
    ),
    _Option("profile", Literal["exponential", "pareto"], "exponential", "form of that long tail"),
    _Option("root", str, "data", "folder of downloads and of the images that lists name"),
    _Option(
        "class_names",
        str | None,
        None,
        "text file with the names of the classes, a name a line in the order of the labels; for npz: and list:",
    ),
    _Option(
        "skip_broken",
        bool,
        False,
        "decode all images first, and leave out those that cannot be; without it, only headers are looked at, and a "
        "bad one is refused",
    ),
)
_NOT_SETTINGS = ("config", "out", "root", "verbose", "workers", "checkpoint_minutes")  # none changes the result


def train(argv: Sequence[str]) -> int:
    """train a method on a data set; the same command continues a run that was stopped"""
    from ltfast.engine import RunSettings
    from ltfast.methods import METHODS, settings_of

    first = _Parser(add_help=False, allow_abbrev=False)
    for name in ("--method", "--config", "--data"):
        first.add_argument(name)
    asked, _ = first.parse_known_args([word for word in argv if word not in ("-h", "--help")])
    if asked.method is not None and asked.method not in METHODS:
        raise UsageError(f"--method: expected one of {', '.join(METHODS)}, got {asked.method!r}")
    config = asked.config
    # a bare `ltfast train --out DIR` is the demonstration; data of one's own are never cut unasked
    if config is None and asked.data is None and not {"-h", "--help"} & set(argv):
        config = f"{asked.method or 'ce'}/digits"
    recipe = {} if config is None else _read_recipe(config)
    method = recipe.get("method", "ce") if asked.method is None else asked.method
    if method not in METHODS or method != recipe.get("method", method):
        raise UsageError(f"--config {config}: it is for method {recipe['method']!r}, not {method!r}")

    parser = _parser("train", train)
    group = parser.add_argument_group("run")
    group.add_argument("--method", default="ce", help=f"one of {', '.join(METHODS)}")
    group.add_argument("--out", required=True, help="folder of the run: checkpoint, metrics.json, per_class.png, logs")
    group.add_argument("--config", help=f"recipe: a YAML file or one of {', '.join(_recipes())}; "
                       "options on the command line come before it; without --data, METHOD/digits")  # fmt: skip
    groups = {
        "data": _DATA,
        "execution": _options(RunSettings),
        f"method {method}": _options(METHODS[method].settings),
    }
    for title, group_options in groups.items():
        _add_options(parser, title, group_options)
    types_ = {option.name: option.type for options in groups.values() for option in options}
    if recipe:
        optional = {name for name, type_ in types_.items() if _may_be_none(type_)}
        recipe = {key: None if key in optional and value == "none" else value for key, value in recipe.items()}
        try:
            parser.parse_object({"out": "", **recipe})  # set_defaults looks at names alone
            parser.set_defaults(recipe)
        except (argparse.ArgumentError, KeyError) as error:
            raise UsageError(f"--config {config}: {_reworded(error, types_)}") from error
    args = vars(_parse(parser, _yaml_words(argv, types_), types_))

    run = RunSettings(**{field.name: args[field.name] for field in dataclasses.fields(RunSettings)})
    fields = dataclasses.fields(METHODS[method].settings)
    settings = settings_of(method, {field.name: args[field.name] for field in fields})
    out = Path(args["out"])
    if not args["out"]:
        raise UsageError("--out: expected a folder's name, got ''")
    _check_writable(next(folder for folder in (out, *out.parents) if folder.exists()))
    return _train(method, settings, run, args, out)


def _train(method: str, settings: Any, run: Any, args: dict[str, Any], out: Path) -> int:
    from ltfast.data import check_images, class_groups, load
    from ltfast.engine import loop, report, seeding
    from ltfast.engine.checkpoint import CHECKPOINT
    from ltfast.methods import METHODS
    from ltfast.methods.restore import facts_of

    accelerator = loop.make_accelerator(run.precision, deterministic=run.deterministic)
    with accelerator.main_process_first():  # the first process downloads, the others find it done
        bundle = load(
            args["data"],
            imbalance=args["imbalance"],
            profile=args["profile"],
            root=args["root"],
            class_names=args["class_names"],
        )
    if args["skip_broken"] or not (out / CHECKPOINT).exists():  # a run that continues has seen the headers
        bundle = check_images(bundle, skip_broken=args["skip_broken"])
    counts = bundle.class_counts
    first = f" ({', '.join(bundle.class_names[:5])}{', ...' if len(counts) > 5 else ''})" if bundle.named else ""
    accelerator.print(
        f"{method} on {args['data']}: {len(bundle.train)} training images in {len(counts)} classes{first} "
        f"of {max(counts)} to {min(counts)}, {len(bundle.test)} test images; {accelerator.device}, {run.precision}"
    )
    if bundle.left_out is not None:
        accelerator.print(bundle.left_out)
    seeding.seed_everything(run.seed)
    plan = METHODS[method].build(
        settings, bundle, run=run, rank=accelerator.process_index, world_size=accelerator.num_processes
    )
    chosen = {name: value for name, value in args.items() if name not in _NOT_SETTINGS}
    chosen["class_counts"] = counts
    if args["class_names"] is not None:
        chosen["class_names"] = bundle.class_names  # they count, whatever the file is called
    if chosen.get("init") is not None:
        chosen["init"] = str(Path(chosen["init"]).expanduser().resolve())  # a run can be evaluated from any folder
    metrics = loop.train(
        plan,
        run=run,
        settings=json.loads(json.dumps(chosen)),  # as a checkpoint and metrics.json give them back
        facts=facts_of(bundle, args["data"], args["root"]),
        class_counts=counts,
        groups=class_groups(counts),
        out=out,
        accelerator=accelerator,
    )
    if accelerator.is_main_process and metrics is not None:
        _print_table(report.table({str(out): metrics}, title="top-1 accuracy (%)"))
        files = ("metrics.json", "per_class.png", "checkpoint.pt", "weights.safetensors")
        written = [name for name in files if (out / name).exists()]
        print(f"written to {out}: {', '.join(written)}, TensorBoard events")
    accelerator.end_training()
    return 130 if accelerator.is_main_process and metrics is None else 0


def evaluate(argv: Sequence[str]) -> int:
    """evaluate a trained checkpoint on test images"""
    from ltfast.engine import RunSettings, check

    parser = _parser("eval", evaluate)
    parser.add_argument("--checkpoint", required=True, help="a run's folder, or its checkpoint file")
    parser.add_argument("--data", help="take the test images of this data set (the same classes); default: the run's")
    parser.add_argument("--root", help="folder of downloads and of the images that lists name; default: the run's")
    parser.add_argument("--class-names", help="text file with a name a line in the order of the labels: the classes of "
                        "the data or of the run, whichever has numbers alone")  # fmt: skip
    parser.add_argument(
        "--skip-broken",
        action="store_true",
        default=None,
        help="decode all test images first, and leave out those that cannot be; default: as the run did",
    )
    parser.add_argument("--out", help="JSON file to write; default: eval.json beside the checkpoint")
    parser.add_argument(
        "--aggregate",
        choices=("instance", "group", "average"),
        help="weights of the sub-models of method do: learned for each test image, for each group of them, or equal; "
        "default: the run's",
    )
    execution = [
        _Option("batch_size", int, 256, "test images a batch and process"),
        *(option for option in _options(RunSettings) if option.name in ("precision", "workers")),
    ]
    _add_options(parser, "execution", execution)
    args = _parse(parser, argv, {option.name: option.type for option in execution})
    run = RunSettings(precision=args.precision, workers=args.workers)
    check(args.batch_size >= 1, "batch_size", "at least 1", args.batch_size)
    checkpoint = Path(args.checkpoint)
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    out = folder / "eval.json" if args.out is None else Path(args.out)

    from ltfast.data import class_groups
    from ltfast.engine import loop, metrics, report
    from ltfast.methods.restore import restore

    accelerator = loop.make_accelerator(run.precision)
    trained = restore(
        checkpoint,
        run=run,
        batch_size=args.batch_size,
        source=args.data,
        root=args.root,
        class_names=args.class_names,
        aggregate=args.aggregate,
        skip_broken=args.skip_broken,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    if out.is_dir():
        raise UsageError(f"--out: expected a file's name, got the folder {args.out!r}")
    _check_writable(out.parent)
    if trained.unfinished is not None:
        accelerator.print(f"{checkpoint}: {trained.unfinished}")
    if trained.left_out is not None:
        accelerator.print(trained.left_out)
    names = trained.facts["class_names"]
    predictor = trained.predictor.to(accelerator.device)
    groups = class_groups(trained.facts["class_counts"])
    result = metrics.evaluate(predictor, trained.plan.test, groups, len(names), accelerator)
    if accelerator.is_main_process:
        report.write_json(out, {**result, "data": trained.source, "checkpoint": str(checkpoint), "class_names": names})
        _print_table(report.table({str(checkpoint): result}, title=f"top-1 accuracy (%) on {trained.source}"))
        print(f"written to {out}")
    accelerator.end_training()
    return 0


def export(argv: Sequence[str]) -> int:
    """write a trained model as a PyTorch program, which needs no ltfast to run"""
    from ltfast.engine import RunSettings

    parser = _parser("export", export)
    parser.add_argument("--checkpoint", required=True, help="a run's folder, or its checkpoint file")
    parser.add_argument(
        "--out",
        default="model.pt2",
        help="file to write, for torch.export.load: images (B, channels, H, W), normalised, to class scores (B, C); "
        "ltfast.json in it has the classes, mean and std",
    )
    parser.add_argument("--root", help="folder of downloads and of the images that lists name; default: the run's")
    parser.add_argument(
        "--aggregate",
        choices=("instance", "group", "average"),
        help="weights of the sub-models of method do, see `ltfast eval`; instance takes two augmented views of each "
        "image as well, group learns from the test images now; default: the run's",
    )
    args = _parse(parser, argv)
    out = Path(args.out)
    if out.is_dir():
        raise UsageError(f"--out: expected a file's name, got the folder {args.out!r}")
    _check_writable(out.parent)

    import torch

    from ltfast.engine.export import export_predictor, save_program
    from ltfast.methods.restore import restore

    trained = restore(Path(args.checkpoint), run=RunSettings(), root=args.root, aggregate=args.aggregate)
    if trained.unfinished is not None:
        print(f"{args.checkpoint}: {trained.unfinished}")
    predictor, facts = trained.predictor.eval(), trained.facts
    with torch.no_grad():
        predictor.adapt(batch[:-1] for batch in trained.plan.test)
    image = next(iter(trained.plan.test))[0][0]
    names = ("class_names", "mean", "std")
    about = {**{name: facts[name] for name in names}, "image_shape": list(image.shape), "views": predictor.views}
    save_program(out, export_predictor(predictor, image.shape), about)
    print(f"written to {out}: {predictor.views} x {tuple(image.shape)} -> {len(facts['class_names'])} class scores")
    return 0


def compare(argv: Sequence[str]) -> int:
    """compare finished runs side by side; `report importance` shows what their parameters matter to, `report prompts`
    which prompts classes choose"""
    reports = {"importance": importance, "prompts": prompts}
    if argv and argv[0] in reports:
        return reports[argv[0]](argv[1:])
    parser = _parser("report", compare)
    parser.add_argument("runs", nargs="+", help="folders of finished runs")
    args = _parse(parser, argv)

    from ltfast.engine import report

    rows = {run: report.read_metrics(Path(run)) for run in args.runs}
    _print_table(report.table(rows, title="top-1 accuracy (%), and a step's loss forward and backward (ms)"))
    for run in args.runs:
        print(f"accuracy of each class: {Path(run) / report.PICTURE}")
    return 0


def importance(argv: Sequence[str]) -> int:
    """show how much the parameters of trained runs matter to many, medium and few classes"""
    from ltfast.engine import RunSettings

    parser = _parser("report importance", importance)
    parser.add_argument("checkpoints", nargs="+", help="runs' folders, or their checkpoint files")
    parser.add_argument("--out", default="importance.png", help="picture to write; the numbers go to .json beside it")
    parser.add_argument("--root", help="folder of downloads and of the images that lists name; default: the runs'")
    execution = [
        _Option("images", int, 2048, "training images of a group or class that are looked at, at most"),
        _Option("batch_size", int, 64, "images a batch"),
        _Option("per_class", bool, False, "of each class too, in the numbers"),
        *(option for option in _options(RunSettings) if option.name == "workers"),
    ]
    _add_options(parser, "execution", execution)
    args = _parse(parser, argv, {option.name: option.type for option in execution})
    picture = _picture(args.out)

    from ltfast.engine import plot, report
    from ltfast.methods.importance import measure

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
    _print_table(report.importance_table(rows))
    for name, row in rows.items():
        if row["weights"] is not None:
            _print_table(report.weights_table(name, row["weights"]))
    drawn = plot.plot_importance(picture, rows)
    print(f"written to {picture} and {numbers}" if drawn else f"written to {numbers}")
    return 0


def prompts(argv: Sequence[str]) -> int:
    """show which group prompts the test images of each class choose, in a run of method lpt"""
    from ltfast.engine import RunSettings

    parser = _parser("report prompts", prompts)
    parser.add_argument("checkpoint", help="a run's folder, or its checkpoint file")
    parser.add_argument("--out", default="prompts.png", help="picture to write; the numbers go to .json beside it")
    parser.add_argument("--root", help="folder of downloads and of the images that lists name; default: the run's")
    execution = [option for option in _options(RunSettings) if option.name == "workers"]
    _add_options(parser, "execution", execution)
    args = _parse(parser, argv, {option.name: option.type for option in execution})
    picture = _picture(args.out)

    from ltfast.engine import plot, report
    from ltfast.methods.prompt_choices import choices

    names, shares = choices(Path(args.checkpoint), run=RunSettings(workers=args.workers), root=args.root)
    numbers = picture.with_suffix(".json")
    report.write_json(numbers, {"class_names": names, "shares": shares})
    drawn = plot.plot_choices(picture, shares, names)
    used = sum(any(row[key] > 0 for row in shares) for key in range(len(shares[0])))
    print(f"{used} of {len(shares[0])} keys are chosen; written to {f'{picture} and ' if drawn else ''}{numbers}")
    return 0


def bench(argv: Sequence[str]) -> int:
    """time each op beside what people would use instead and the machine's limits; `bench step` times training steps"""
    if argv and argv[0] == "step":
        return bench_step(argv[1:])
    from ltfast.bench.case import SHAPES
    from ltfast.bench.cases import OPS

    parser = _parser("bench", bench)
    group = parser.add_argument_group("what to time")
    group.add_argument("--ops", help=f"some of {', '.join(OPS)}, with commas; default: all")
    group.add_argument("--shapes", help=f"some of {', '.join(SHAPES)}; default: all on a GPU, the first three on a CPU")
    group.add_argument("--peers", help="implementations beside ltfast, as the tables name them, or none; default: all")
    _add_bench_options(group)
    group.add_argument("--out", help="folder for results.json, speedups.png, roofline.png and growth.png")
    group = parser.add_argument_group("comparison; times nothing")
    group.add_argument("--compare", nargs=2, metavar=("BEFORE", "AFTER"), help="two results.json, or their folders: "
                       "show what became slower, and exit with 1 if something did")  # fmt: skip
    group.add_argument("--threshold", type=float, default=1.5, help="slower is over so many times as long, with "
                       "quartiles that do not meet")  # fmt: skip
    args = _parse(parser, argv)

    from ltfast.bench import results

    if args.compare is not None:
        before, after = (results.read(Path(name)) for name in args.compare)
        shown, found = results.slower(before, after, args.threshold)
        _print_table(shown)
        print(f"slower: {', '.join(found) or 'nothing'}")
        return 1 if found else 0

    from ltfast.bench import pictures, run
    from ltfast.engine import report

    device = _bench_device(args)
    shapes = _some("shapes", args.shapes, SHAPES) or (SHAPES if device.type == "cuda" else SHAPES[:3])
    out = _folder(args.out)
    measured = run.bench(
        device,
        ops=_some("ops", args.ops, OPS) or list(OPS),
        shapes=shapes,
        peers=None if args.peers is None else [] if args.peers == "none" else args.peers.split(","),
        seconds=args.seconds,
        with_growth=out is not None,
        show=lambda rows: _print_table(results.table(rows)),
    )
    print(results.describe(measured))
    if out is not None:
        report.write_json(out / results.RESULTS, measured)
        draw = {"speedups.png": pictures.speedups, "roofline.png": pictures.roofline, "growth.png": pictures.growth}
        drawn = [name for name, picture in draw.items() if picture(out / name, measured)]
        print(f"written to {out}: {', '.join([results.RESULTS, *drawn])}")
    return 0


def bench_step(argv: Sequence[str]) -> int:
    """time whole training steps with the published losses and with ltfast's"""
    from ltfast.bench import step

    parser = _parser("bench step", bench_step)
    group = parser.add_argument_group("what to time")
    group.add_argument("--methods", help=f"some of {', '.join(step.METHODS)}; default: all")
    _add_bench_options(group)
    group.add_argument("--out", help="folder for steps.json")
    args = _parse(parser, argv)

    from ltfast.bench import results, run
    from ltfast.engine import report

    device, methods = _bench_device(args), _some("methods", args.methods, step.METHODS)
    out = _folder(args.out)
    rows = step.run_steps(device, methods or list(step.METHODS), seconds=args.seconds)
    for method in dict.fromkeys(row["method"] for row in rows):
        _print_table(results.step_table([row for row in rows if row["method"] == method]))
    if out is not None:
        report.write_json(out / "steps.json", {"machine": run.machine(device), "rows": rows})
        print(f"written to {out}: steps.json")
    return 0


def info(argv: Sequence[str]) -> int:
    """show versions, devices and the implementations that run here"""
    parser = _Parser(prog="ltfast info", description=_capital(info.__doc__))
    parser.parse_args(argv)

    import platform

    import torch

    from ltfast import ops
    from ltfast.ops.backends import choice, describe

    print(f"ltfast {ltfast.__version__}")
    print(f"Python {platform.python_version()} on {platform.platform()}")
    for name in ("torch", "torchvision", "timm", "accelerate", "triton"):
        print(f"{name} {_version(name)}")
    print(f"CPU: {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        print(f"GPU {index}: {device.name}, {device.total_memory / 2**30:.0f} GiB")
    if not torch.cuda.is_available():
        print("GPU: none that torch can use")
    for row in describe():
        print(f"backend {row['name']}: {row['status']}{f' ({detail})' if (detail := row['detail']) else ''}")
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    for op in ops.__all__:
        print(f"op {op}: " + ", ".join(f"{choice(torch.device(device))} on {device}" for device in devices))
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": train,
    "eval": evaluate,
    "export": export,
    "report": compare,
    "bench": bench,
    "info": info,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status: 0, 1 (failed), 2 (bad usage or input), 130 (interrupted)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    verbose = bool({"-v", "--verbose"} & set(argv))
    try:
        if argv and argv[0] in COMMANDS:
            return COMMANDS[argv[0]](argv[1:])
        _top_level().parse_args(argv or ["--help"])
        return 0
    except KeyboardInterrupt:
        hint = "; the same command continues from the last checkpoint" if argv[:1] == ["train"] else ""
        print(f"ltfast: interrupted{hint}", file=sys.stderr)
        return 130
    except Exception as error:
        if verbose:
            traceback.print_exc()
        if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] in _EXTRA:
            print(f"ltfast: {error.name} is not installed; the command line needs pip install 'ltfast[train]'",
                  file=sys.stderr)  # fmt: skip
            return 2
        if lost := _lost_process(error):
            print(f"ltfast: error: {lost} ({type(error).__name__}: {_one_line(error)})", file=sys.stderr)
            return 1
        bad_input = isinstance(
            error, (ValueError, TypeError, FileNotFoundError, ModuleNotFoundError, argparse.ArgumentError)
        )
        known = bad_input or isinstance(error, OSError) or type(error).__name__ == "TrainingError"
        name = "" if known else f"{type(error).__name__}: "
        hint = "" if known or verbose else " (-v shows where)"
        print(f"ltfast: error: {name}{_in_flags(_one_line(error))}{hint}", file=sys.stderr)
        return 2 if bad_input else 1


def _top_level() -> argparse.ArgumentParser:
    commands = "\n".join(f"  {name:8}{command.__doc__}" for name, command in COMMANDS.items())
    parser = _Parser(
        prog="ltfast",
        usage="ltfast COMMAND [OPTION ...]",
        description=f"Fast training on long-tailed images.\n\ncommands:\n{commands}",
        epilog="`ltfast COMMAND --help` shows a command's options; start with: ltfast train --out run",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ltfast {ltfast.__version__}")
    parser.add_argument("command", choices=list(COMMANDS), help=argparse.SUPPRESS)
    return parser


def _parser(name: str, command: Callable[..., int]) -> "jsonargparse.ArgumentParser":
    import jsonargparse

    parser = jsonargparse.ArgumentParser(
        prog=f"ltfast {name}", description=_capital(command.__doc__), exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="show a traceback if something fails")
    return parser


def _add_bench_options(group: Any) -> None:
    group.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda where there is one")
    group.add_argument("--seconds", type=float, default=0.2, help="of timed calls for each implementation and size")


def _bench_device(args: Any) -> "torch.device":
    import torch

    from ltfast.engine import check

    check(args.seconds > 0, "seconds", "a positive number", args.seconds)
    gpu = torch.cuda.is_available()
    check(gpu or args.device != "cuda", "device", "cpu, as PyTorch sees no GPU", args.device)
    torch.manual_seed(0)
    return torch.device(args.device or ("cuda" if gpu else "cpu"))


def _some(name: str, words: str | None, known: Collection[str]) -> list[str]:
    """Comma-separated names, none where nothing was given."""
    names = [] if words is None else words.split(",")
    for word in names:
        if word not in known:
            raise UsageError(f"{_flag(name)}: expected some of {', '.join(known)}, got {word!r}")
    return names


def _folder(name: str | None) -> Path | None:
    if name is None:
        return None
    path = Path(name)
    path.mkdir(parents=True, exist_ok=True)
    _check_writable(path)
    return path


def _print_table(table: "Table") -> None:
    from rich.console import Console

    Console(soft_wrap=True, highlight=False, emoji=False).print(table)  # a path may have a :name: of an emoji in it


def _picture(name: str) -> Path:
    path = Path(name)
    if path.suffix not in (".png", ".pdf", ".svg"):
        raise UsageError(f"--out: expected a .png, .pdf or .svg file's name, got {name!r}")
    _check_writable(path.parent)
    return path


def _check_writable(folder: Path) -> None:
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise UsageError(f"--out: {folder} is not a folder that can be written to")


def _parse(parser: "jsonargparse.ArgumentParser", argv: Sequence[str], types_: Mapping[str, Any] | None = None) -> Any:
    try:
        return parser.parse_args(list(argv))
    except argparse.ArgumentError as error:
        raise UsageError(_reworded(error, types_ or {})) from error


def _reworded(error: Exception, types_: Mapping[str, Any]) -> str:
    """What jsonargparse says, in the words of the other messages."""
    text = _one_line(error)
    if match := re.match(r'Parser key "(\w+)": .*(?:Got|Given) value: (.*)', text):
        name, value = match.groups()
        if name in types_:
            return f"{_flag(name)}: expected {_in_words(types_[name])}, got {value!r}"
    return re.sub(r"(?<=arguments are required: )(out|checkpoint)$", lambda match: _flag(match[0]), text)


def _in_words(type_: Any) -> str:
    parts = get_args(type_)
    if get_origin(type_) is Literal:
        return f"one of {', '.join(parts)}"
    if get_origin(type_) is tuple:
        return f"{parts[0].__name__},{parts[0].__name__},..."
    return " or ".join("none" if part is types.NoneType else part.__name__ for part in parts or [type_])


def _options(settings: type) -> list[_Option]:
    hints = get_type_hints(settings)
    return [
        _Option(field.name, hints[field.name], field.default, field.metadata["help"])
        for field in dataclasses.fields(settings)
    ]


def _add_options(parser: "jsonargparse.ArgumentParser", title: str, options: Sequence[_Option]) -> None:
    """Add a titled group of options."""
    import jsonargparse

    group = parser.add_argument_group(title)
    for option in options:
        flag = _flag(option.name)
        if option.type is bool:
            group.add_argument(
                flag, action=jsonargparse.ActionYesNo(no_prefix="no-"), default=option.default, help=option.help
            )
        else:
            group.add_argument(flag, type=option.type, default=option.default, help=option.help)


def _yaml_words(argv: Sequence[str], types_: Mapping[str, Any]) -> list[str]:
    """`none` as YAML's null and `60,80` as its [60,80], for the options of such types."""
    words = list(argv)
    by_flag = {_flag(name): type_ for name, type_ in types_.items()}
    for i, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if equals and flag in by_flag:
            words[i] = f"{flag}={_yaml(value, by_flag[flag])}"
        elif i and words[i - 1] in by_flag:
            words[i] = _yaml(word, by_flag[words[i - 1]])
    return words


def _yaml(value: str, type_: Any) -> str:
    if value == "none" and _may_be_none(type_):
        return "null"
    return f"[{value}]" if get_origin(type_) is tuple and not value.startswith("[") else value


def _may_be_none(type_: Any) -> bool:
    return types.NoneType in get_args(type_)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _in_flags(text: str) -> str:
    """A message about a setting, `batch_size: expected ...`, with the flag for its name."""
    from ltfast.engine import RunSettings
    from ltfast.methods import METHODS

    name, colon, rest = text.partition(": ")
    name = "data" if name == "source" else name  # the word of ltfast.data
    settings: list[type] = [RunSettings, *(method.settings for method in METHODS.values())]
    options = [*_DATA, *(option for owner in settings for option in _options(owner))]
    known = name in ("checkpoint", "out", *(option.name for option in options))
    return f"{_flag(name)}{colon}{rest}" if colon and known else text


def _recipes() -> list[str]:
    folder = resources.files("ltfast") / "recipes"
    return sorted(
        f"{method.name}/{file.name.removesuffix('.yaml')}"
        for method in folder.iterdir()
        if method.is_dir()
        for file in method.iterdir()
        if file.name.endswith(".yaml")
    )


def _read_recipe(name: str) -> dict[str, Any]:
    import yaml

    path = Path(name)
    if path.is_file():
        text = path.read_text()
    elif name in _recipes():
        text = (resources.files("ltfast") / "recipes" / f"{name}.yaml").read_text()
    else:
        raise UsageError(f"--config: there is no file {name}, and no recipe of that name among {', '.join(_recipes())}")
    try:
        recipe = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"--config {name}: no YAML: {_one_line(error)}") from error
    if not isinstance(recipe, dict):
        raise UsageError(f"--config {name}: expected names and values, a pair a line")
    return recipe


def _lost_process(error: Exception) -> str | None:
    """What to say of an error that is another process's death; gloo and the DataLoader have no class for it."""
    name, text = type(error).__name__, str(error)
    if name in ("DistBackendError", "DistNetworkError") or (isinstance(error, RuntimeError) and "/gloo/" in text):
        return "another process of this run has ended, and has said why if it could"
    if isinstance(error, (ConnectionError, EOFError)) or "DataLoader worker" in text:
        return "a process that loads images has ended; if memory was short, fewer --workers need less"
    return None


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _one_line(error: BaseException) -> str:
    text = error.args[0] if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(str(text).split())


def _capital(text: str | None) -> str:
    return f"{text[0].upper()}{text[1:]}." if text else ""


if __name__ == "__main__":
    sys.exit(main())
