"""The command line: `ltfast train | eval | export | report | bench | info`."""

import argparse
import dataclasses
import json
import logging
import os
import re
import signal
import sys
import threading
import traceback
import types
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, get_args, get_origin, get_type_hints

import ltfast
from ltfast.errors import SettingError, UserError
from ltfast.terminal import Output, say, shown, tolerant_streams

if TYPE_CHECKING:
    import jsonargparse
    import torch
    from rich.table import Table

    from ltfast.recipe import Recipe

# Whatever is slow to import (torch, timm, ...) is imported by the command that needs it.

_EXTRA = {"accelerate", "jsonargparse", "matplotlib", "rich", "safetensors", "sklearn", "tensorboard", "timm",
          "torchmetrics", "torchvision", "yaml", "PIL"}  # fmt: skip


# not the functions' docstrings, which `python -OO` leaves out
_ABOUT = {
    "train": "train a method on a data set; the same command continues a run that was stopped",
    "eval": "evaluate a trained checkpoint on test images",
    "export": "write a trained model as a PyTorch program, which needs no ltfast to run",
    "report": "compare finished runs side by side; `report importance` shows what their parameters matter to, "
    "`report prompts` which prompts classes choose",
    "report importance": "show how much the parameters of trained runs matter to many, medium and few classes",
    "report prompts": "show which group prompts the test images of each class choose, in a run of method lpt",
    "bench": "time each op beside what people would use instead and the machine's limits; `bench step` times training "
    "steps",
    "bench step": "time whole training steps with the published losses and with ltfast's",
    "info": "show versions, devices and the implementations that run here",
}


class UsageError(UserError):
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
    from ltfast.engine import RunSettings
    from ltfast.methods import METHODS, settings_of
    from ltfast.recipe import read_recipe, recipe_names

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
    try:
        recipe = None if config is None else read_recipe(config)
    except UserError as error:
        raise UsageError(f"--config {error}") from error
    method = _method(asked.method, recipe)

    parser = _parser("train")
    group = parser.add_argument_group("run")
    group.add_argument("--method", default="ce", help=f"one of {', '.join(METHODS)}")
    group.add_argument("--out", required=True, help="folder of the run: checkpoint, metrics.json, per_class.png, logs")
    group.add_argument("--config", help=f"recipe: a YAML file or one of {', '.join(recipe_names())}; "
                       "options on the command line come before it; without --data, METHOD/digits")  # fmt: skip
    groups = {
        "data": _DATA,
        "execution": _options(RunSettings),
        f"method {method}": _options(METHODS[method].settings),
    }
    for title, group_options in groups.items():
        _add_options(parser, title, group_options)
    types_ = {option.name: option.type for options in groups.values() for option in options}
    if recipe is not None:
        parser.set_defaults(_checked(recipe, method, types_))
    args = {**vars(_parse(parser, argv, types_)), "method": method}
    out = Path(args["out"])
    if not args["out"]:
        raise UsageError("--out: expected a folder's name, got ''")

    try:
        run = RunSettings(**{field.name: args[field.name] for field in dataclasses.fields(RunSettings)})
        fields = dataclasses.fields(METHODS[method].settings)
        settings = settings_of(method, {field.name: args[field.name] for field in fields})
        _check_writable(next(folder for folder in (out, *out.parents) if folder.exists()))
        return _train(method, settings, run, args, out)
    except SettingError as error:
        if recipe is None or error.name not in recipe.lines or _is_given(error.name, argv):
            raise
        raise UsageError(f"--config {recipe.where(error.name)}: {error}") from error


def _method(asked: str | None, recipe: "Recipe | None") -> str:
    """The method that is asked for, the recipe's or the default."""
    from ltfast.methods import METHODS

    if recipe is None or "method" not in recipe.values:
        return "ce" if asked is None else asked
    method = recipe.values["method"]
    if not isinstance(method, str) or method not in METHODS:
        raise UsageError(f"--config {recipe.where('method')}: method: expected one of {', '.join(METHODS)}, "
                         f"got {method!r}")  # fmt: skip
    if asked is not None and asked != method:
        raise UsageError(f"--config {recipe.where('method')}: it is for method {method!r}, not {asked!r}")
    return method


def _checked(recipe: "Recipe", method: str, types_: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's settings, of the types that they have to be."""
    values = {}
    for key, value in recipe.values.items():
        if key == "method":
            continue
        if key not in types_:
            near = get_close_matches(key, types_, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UsageError(f"--config {recipe.where(key)}: {key}: expected a setting of method {method}{hint}")
        if value == "none" and _may_be_none(types_[key]):
            value = None
        if not _fits(value, types_[key]):
            raise UsageError(f"--config {recipe.where(key)}: {key}: expected {_in_words(types_[key])}, got {value!r}")
        values[key] = value
    return values


def _fits(value: Any, type_: Any) -> bool:
    origin, parts = get_origin(type_), get_args(type_)
    if origin is Literal:
        return isinstance(value, str) and value in parts
    if origin is tuple:
        each = (parts[0],) * len(value) if isinstance(value, list) and parts[-1] is Ellipsis else parts
        return isinstance(value, list) and len(value) == len(each) and all(map(_fits, value, each))
    if parts:
        return any(_fits(value, part) for part in parts)
    if type_ is float:
        return type(value) in (int, float)
    return type(value) is type_


def _is_given(name: str, argv: Sequence[str]) -> bool:
    """Whether an option is on the command line."""
    return any(word.split("=")[0] in (_flag(name), f"--no-{_flag(name)[2:]}") for word in argv)


def _train(method: str, settings: Any, run: Any, args: dict[str, Any], out: Path) -> int:
    from ltfast.data import check_images, class_groups, load
    from ltfast.engine import identity, loop, report, seeding
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
    chosen = {name: value for name, value in args.items() if name not in _NOT_SETTINGS}
    continues = (out / CHECKPOINT).exists()
    # before the processes share work that depends on these
    identity.check_processes(chosen, accelerator, hint=identity.SAME_COMMAND)
    identity.check_processes({"checkpoint": continues}, accelerator, hint=identity.same_folder(out))
    if args["skip_broken"] or not continues:  # a run that continues has seen the headers
        bundle = check_images(bundle, skip_broken=args["skip_broken"])
    counts = bundle.class_counts
    first = f" ({', '.join(bundle.class_names[:5])}{', ...' if len(counts) > 5 else ''})" if bundle.named else ""
    if accelerator.is_main_process:
        say(
            f"{method} on {args['data']}: {len(bundle.train)} training images in {len(counts)} classes{first} "
            f"of {max(counts)} to {min(counts)}, {len(bundle.test)} test images; {accelerator.device}, {run.precision}"
        )
        if bundle.left_out is not None:
            say(bundle.left_out)
        if words := _chosen_by_auto(settings, settings.chosen(bundle)):
            say(f"chosen by auto: {words}")
    seeding.seed_everything(run.seed)
    plan = METHODS[method].build(
        settings, bundle, run=run, rank=accelerator.process_index, world_size=accelerator.num_processes
    )
    chosen["class_counts"] = counts
    if args["class_names"] is not None:
        chosen["class_names"] = bundle.class_names  # they count, whatever the file is called
    if chosen.get("init") is not None:
        chosen["init"] = str(Path(chosen["init"]).expanduser().resolve())  # a run can be evaluated from any folder
    metrics = loop.train(
        plan,
        run=run,
        settings=json.loads(json.dumps(chosen)),  # as a checkpoint and metrics.json give them back
        # the processes of one machine see the same files: one of them looks at all
        facts=facts_of(bundle, args["data"], args["root"], sizes=accelerator.is_local_main_process),
        class_counts=counts,
        groups=class_groups(counts),
        out=out,
        accelerator=accelerator,
    )
    if accelerator.is_main_process and metrics is not None:
        _print_table(report.table({str(out): metrics}, title="top-1 accuracy (%)"))
        files = ("metrics.json", "per_class.png", "checkpoint.pt", "weights.safetensors")
        written = [name for name in files if (out / name).exists()]
        say(f"written to {out}: {', '.join(written)}, TensorBoard events")
    accelerator.end_training()
    return 130 if accelerator.is_main_process and metrics is None else 0


def evaluate(argv: Sequence[str]) -> int:
    from ltfast.engine import RunSettings, check

    parser = _parser("eval")
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
    from ltfast.engine import identity, loop, metrics, report
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
    identity.check_processes(
        {
            **trained.settings,
            "data": trained.source,
            "aggregate": args.aggregate,
            "precision": run.precision,
            "unfinished": trained.unfinished,
        },
        accelerator,
        hint="Start all of them with the same command",
    )
    if out.is_dir():
        raise UsageError(f"--out: expected a file's name, got the folder {args.out!r}")
    _check_writable(out.parent)
    if accelerator.is_main_process:
        if trained.unfinished is not None:
            say(f"{checkpoint}: {trained.unfinished}")
        if trained.left_out is not None:
            say(trained.left_out)
    names = trained.facts["class_names"]
    predictor = trained.predictor.to(accelerator.device)
    groups = class_groups(trained.facts["class_counts"])
    result = metrics.evaluate(predictor, trained.plan.test, groups, len(names), accelerator)
    if accelerator.is_main_process:
        report.write_json(out, {**result, "data": trained.source, "checkpoint": str(checkpoint), "class_names": names})
        _print_table(report.table({str(checkpoint): result}, title=f"top-1 accuracy (%) on {trained.source}"))
        say(f"written to {out}")
    accelerator.end_training()
    return 0


def export(argv: Sequence[str]) -> int:
    from ltfast.engine import RunSettings

    parser = _parser("export")
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


def compare(argv: Sequence[str]) -> int:
    reports = {"importance": importance, "prompts": prompts}
    if argv and argv[0] in reports:
        return reports[argv[0]](argv[1:])
    parser = _parser("report")
    parser.add_argument("runs", nargs="+", help="folders of finished runs")
    args = _parse(parser, argv)

    from ltfast.engine import report

    rows = {run: report.read_metrics(Path(run)) for run in args.runs}
    _print_table(report.table(rows, title="top-1 accuracy (%), and a step's loss forward and backward (ms)"))
    for run in args.runs:
        say(f"accuracy of each class: {Path(run) / report.PICTURE}")
    return 0


def importance(argv: Sequence[str]) -> int:
    from ltfast.engine import RunSettings

    parser = _parser("report importance")
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
    say(f"written to {picture} and {numbers}" if drawn else f"written to {numbers}")
    return 0


def prompts(argv: Sequence[str]) -> int:
    from ltfast.engine import RunSettings

    parser = _parser("report prompts")
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
    say(f"{used} of {len(shares[0])} keys are chosen; written to {f'{picture} and ' if drawn else ''}{numbers}")
    return 0


def bench(argv: Sequence[str]) -> int:
    if argv and argv[0] == "step":
        return bench_step(argv[1:])
    from ltfast.bench.case import SHAPES
    from ltfast.bench.cases import OPS

    parser = _parser("bench")
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
    args = _parse(parser, argv, _BENCH_TYPES)

    from ltfast.bench import results

    if args.compare is not None:
        before, after = (results.read(Path(name)) for name in args.compare)
        shown, found = results.slower(before, after, args.threshold)
        _print_table(shown)
        say(f"slower: {', '.join(found) or 'nothing'}")
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
    for line in results.describe(measured).split("\n"):
        say(line)
    if out is not None:
        report.write_json(out / results.RESULTS, measured)
        draw = {"speedups.png": pictures.speedups, "roofline.png": pictures.roofline, "growth.png": pictures.growth}
        drawn = [name for name, picture in draw.items() if picture(out / name, measured)]
        say(f"written to {out}: {', '.join([results.RESULTS, *drawn])}")
    return 0


def bench_step(argv: Sequence[str]) -> int:
    from ltfast.bench import step

    parser = _parser("bench step")
    group = parser.add_argument_group("what to time")
    group.add_argument("--methods", help=f"some of {', '.join(step.METHODS)}; default: all")
    _add_bench_options(group)
    group.add_argument("--out", help="folder for steps.json")
    args = _parse(parser, argv, _BENCH_TYPES)

    from ltfast.bench import results, run
    from ltfast.engine import report

    device, methods = _bench_device(args), _some("methods", args.methods, step.METHODS)
    out = _folder(args.out)
    rows = step.run_steps(device, methods or list(step.METHODS), seconds=args.seconds)
    for method in dict.fromkeys(row["method"] for row in rows):
        _print_table(results.step_table([row for row in rows if row["method"] == method]))
    if out is not None:
        report.write_json(out / "steps.json", {"machine": run.machine(device), "rows": rows})
        say(f"written to {out}: steps.json")
    return 0


def info(argv: Sequence[str]) -> int:
    parser = _Parser(prog="ltfast info", description=_capital(_ABOUT["info"]))
    parser.parse_args(argv)

    import platform

    import torch

    from ltfast import ops
    from ltfast.ops.core.backends import choice, describe

    say(f"ltfast {ltfast.__version__}")
    say(f"Python {platform.python_version()} on {platform.platform()}")
    for name in ("torch", "torchvision", "timm", "accelerate", "triton"):
        say(f"{name} {_version(name)}")
    say(f"CPU: {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        say(f"GPU {index}: {device.name}, {device.total_memory / 2**30:.0f} GiB")
    if not torch.cuda.is_available():
        say("GPU: none that torch can use")
    for row in describe():
        say(f"backend {row['name']}: {row['status']}{f' ({detail})' if (detail := row['detail']) else ''}")
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    for op in ops.__all__:
        say(f"op {op}: " + ", ".join(f"{choice(torch.device(device))} on {device}" for device in devices))
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
    # PyTorch says of a machine with nvcc and no GPU which nvcc it would use
    logging.getLogger("torch.utils.cpp_extension").addFilter(lambda record: "No CUDA runtime" not in record.msg)
    with tolerant_streams() as output, _shown_warnings(), _noted_interrupts() as interrupts:
        try:
            status = _run(argv, interrupts)
        finally:
            lost = _say_what_is_lost(output)
        return 1 if lost and not _writes_files(argv) else status


def _run(argv: list[str], interrupts: Sequence[int]) -> int:
    try:
        if argv and argv[0] in COMMANDS:
            return COMMANDS[argv[0]](argv[1:])
        _top_level().parse_args(argv or ["--help"])
        return 0
    except KeyboardInterrupt:
        return _interrupted(argv)
    except Exception as error:
        # an interrupt in the middle of an import becomes whatever the library makes of it
        return _interrupted(argv) if interrupts else _failed(error, verbose=bool({"-v", "--verbose"} & set(argv)))


def _interrupted(argv: Sequence[str]) -> int:
    parser = _Parser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--out")
    out = parser.parse_known_args([word for word in argv if word != "--out"] if argv[-1:] == ["--out"] else argv)[0].out
    continues = argv[:1] == ["train"] and out is not None and (Path(out) / "checkpoint.pt").exists()
    hint = "; the same command continues from the last checkpoint" if continues else ""
    say(f"ltfast: interrupted{hint}", error=True)
    return 130


def _failed(error: Exception, *, verbose: bool) -> int:
    """Say what an error is in one line; of a fault of the program, show the traceback. The exit status."""
    if verbose:
        _show_traceback(error)
    text = _one_line(error)
    if isinstance(error, SettingError):
        text = f"{_flag(error.name)}{text.removeprefix(error.name)}"
    if isinstance(error, UserError | argparse.ArgumentError):
        say(f"ltfast: error: {_in_flags(text)}", error=True)
        return 2
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] in _EXTRA:
        say(f"ltfast: {error.name} is not installed; the command line needs pip install 'ltfast[train]'", error=True)
        return 2
    name = f"{type(error).__name__}: {text}"
    if lost := _lost_process(error):
        say(f"ltfast: error: {lost} ({name})", error=True)
    elif _is_out_of_memory(error):
        say(f"ltfast: error: the memory is too small; a lower --batch-size needs less ({name})", error=True)
    elif isinstance(error, OSError) or type(error).__name__ == "TrainingError":
        say(f"ltfast: error: {_in_flags(text)}", error=True)
    else:
        if not verbose:
            _show_traceback(error)
        say(f"ltfast: error: {name}: a fault of the program, not of what you asked for; the lines above say where",
            error=True)  # fmt: skip
    return 1


def _show_traceback(error: Exception) -> None:
    for line in "".join(traceback.format_exception(error)).rstrip("\n").split("\n"):
        say(line, error=True)


@contextmanager
def _noted_interrupts() -> Iterator[list[int]]:
    """The interrupts that have come. The signal raises KeyboardInterrupt, as it does without this."""
    noted: list[int] = []

    def note(number: int, frame: types.FrameType | None) -> None:
        noted.append(number)
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    # it is something else where the process was told to ignore it, or where others have made it theirs
    noting = before is signal.default_int_handler and threading.current_thread() is threading.main_thread()
    if noting:
        signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        if noting:
            signal.signal(signal.SIGINT, before)


@contextmanager
def _shown_warnings() -> Iterator[None]:
    """Warnings as a line each: ltfast's own without the place where they come from."""
    before = warnings.formatwarning
    own = str(Path(ltfast.__file__).parent)

    def on_one_line(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        place = "" if filename.startswith(own) else f"{filename}:{lineno}: {category.__name__}: "
        return f"ltfast: warning: {shown(place + _one_line(message))}\n"

    warnings.formatwarning = on_one_line
    try:
        yield
    finally:
        warnings.formatwarning = before


def _say_what_is_lost(output: Output | None) -> bool:
    """Whether standard output could not be written. That nobody reads it any more (`ltfast info | head -1`) is not
    worth a word."""
    if output is None:
        return False
    output.flush()
    if output.error is None or isinstance(output.error, BrokenPipeError):
        return False
    say(f"ltfast: standard output cannot be written: {output.error}; what goes to files is written", error=True)
    return True


def _writes_files(argv: Sequence[str]) -> bool:
    reports = argv[:2] in (["report", "importance"], ["report", "prompts"])
    return argv[:1] in (["train"], ["eval"], ["export"]) or reports or _is_given("out", argv)


def _top_level() -> argparse.ArgumentParser:
    commands = "\n".join(f"  {name:8}{_ABOUT[name]}" for name in COMMANDS)
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


def _parser(name: str) -> "jsonargparse.ArgumentParser":
    import jsonargparse

    parser = jsonargparse.ArgumentParser(
        prog=f"ltfast {name}", description=_capital(_ABOUT[name]), exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="show a traceback if something fails")
    return parser


_BENCH_TYPES = {"seconds": float, "threshold": float}


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
    from ltfast.engine.console import Console

    Console().print(table, markup=True)


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
    """The arguments; `types_` are those of the options whose values are read as a recipe's are."""
    try:
        return parser.parse_args(_yaml_words(argv, types_ or {}))
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
    origin, parts = get_origin(type_), get_args(type_)
    if origin is Literal:
        return f"one of {', '.join(parts)}" if len(parts) > 1 else parts[0]
    if origin is tuple:
        return f"{parts[0].__name__},{parts[0].__name__},..."
    if parts:
        return " or ".join(map(_in_words, parts))
    return "none" if type_ is types.NoneType else type_.__name__


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
            words[i] = f"{flag}={_yaml(flag, value, by_flag[flag])}"
        elif i and words[i - 1] in by_flag:
            words[i] = _yaml(words[i - 1], word, by_flag[words[i - 1]])
    return words


def _yaml(flag: str, value: str, type_: Any) -> str:
    from ltfast.recipe import plain_value

    parts = get_args(type_)
    if value == "none" and _may_be_none(type_):
        return "null"
    if type_ is bool or str in (type_, *parts):
        return value
    try:
        for word in value.strip("[]").split(","):
            if plain_value(word.strip()) is None and not _may_be_none(type_):
                raise ValueError(repr(value))
    except ValueError as error:  # 1:30 and 010, say, which jsonargparse takes for 90 and 10
        raise UsageError(f"{flag}: expected {_in_words(type_)}, got {error}") from error
    listed = any(get_origin(part) is tuple for part in (type_, *parts)) and not _fits(value, type_)
    return f"[{value}]" if listed and not value.startswith("[") else value


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


def _chosen_by_auto(asked: Any, chosen: Any) -> str:
    """What settings that are "auto" have become, as options."""
    values = {field.name: getattr(chosen, field.name) for field in dataclasses.fields(asked)
              if getattr(asked, field.name) == "auto"}  # fmt: skip
    words = {name: ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
             for name, value in values.items()}  # fmt: skip
    return " ".join(f"{_flag(name)} {word}" for name, word in words.items() if word != "auto")


def _lost_process(error: Exception) -> str | None:
    """What to say of an error that is another process's death; gloo and the DataLoader have no class for it."""
    name, text = type(error).__name__, str(error)
    if name in ("DistBackendError", "DistNetworkError") or (isinstance(error, RuntimeError) and "/gloo/" in text):
        return "another process of this run has ended, and has said why if it could"
    if isinstance(error, (ConnectionError, EOFError)) or "DataLoader worker" in text:
        return "a process that loads images has ended; if memory was short, fewer --workers need less"
    return None


def _is_out_of_memory(error: Exception) -> bool:
    """PyTorch has a class for a GPU's memory alone."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)
    )  # fmt: skip


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _one_line(error: BaseException | str) -> str:
    text = error.args[0] if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(str(text).split())


def _capital(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


if __name__ == "__main__":
    sys.exit(main())
