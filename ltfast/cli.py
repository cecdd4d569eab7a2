"""The command line: `ltfast train | eval | report | info`."""

import argparse
import dataclasses
import json
import re
import sys
import traceback
import types
from collections.abc import Callable, Sequence
from importlib import resources
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_args, get_type_hints

import ltfast

if TYPE_CHECKING:
    import jsonargparse

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
    _Option("profile", str, "exponential", "form of that long tail: exponential or pareto"),
    _Option("root", str, "data", "folder of downloads and of the images that lists name"),
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
    # a bare `ltfast train --out DIR` is the demonstration; data of one's own are never cut unasked
    config = asked.config or (f"{asked.method or 'ce'}/digits" if asked.data is None else None)
    recipe = _read_recipe(config) if config else {}
    method = asked.method or recipe.get("method", "ce")
    if method not in METHODS or method != recipe.get("method", method):
        raise UsageError(f"--config {config}: it is for method {recipe['method']!r}, not {method!r}")

    parser = _parser("train", train)
    group = parser.add_argument_group("run")
    group.add_argument("--method", default="ce", help=f"one of {', '.join(METHODS)}")
    group.add_argument("--out", required=True, help="folder of the run: checkpoint, metrics.json, per_class.png, logs")
    group.add_argument("--config", help=f"recipe: a YAML file or one of {', '.join(_recipes())}; "
                       "options on the command line come before it; without --data, METHOD/digits")  # fmt: skip
    optional = _add_options(parser, "data", _DATA)
    optional |= _add_options(parser, "execution", _options(RunSettings))
    optional |= _add_options(parser, f"method {method}", _options(METHODS[method].settings))
    if recipe:
        recipe = {key: None if key in optional and value == "none" else value for key, value in recipe.items()}
        try:
            parser.parse_object({"out": "", **recipe})  # set_defaults looks at names alone
            parser.set_defaults(recipe)
        except (argparse.ArgumentError, KeyError) as error:
            raise UsageError(f"--config {config}: {_one_line(error)}") from error
    args = vars(_parse(parser, _nulls(argv, optional)))

    run = RunSettings(**{field.name: args[field.name] for field in dataclasses.fields(RunSettings)})
    fields = dataclasses.fields(METHODS[method].settings)
    settings = settings_of(method, {field.name: args[field.name] for field in fields})
    out = Path(args["out"])
    if not args["out"] or (out.exists() and not out.is_dir()):
        raise UsageError(f"--out: expected a folder's name, got {args['out']!r}")
    return _train(method, settings, run, args, out)


def _train(method: str, settings: Any, run: Any, args: dict[str, Any], out: Path) -> int:
    from rich.console import Console

    from ltfast.data import class_groups, load
    from ltfast.engine import loop, report, seeding
    from ltfast.methods import METHODS
    from ltfast.methods.restore import facts_of

    accelerator = loop.make_accelerator(run.precision)
    console = Console(quiet=not accelerator.is_main_process, soft_wrap=True, highlight=False)
    with accelerator.main_process_first():  # the first process downloads, the others find it done
        bundle = load(args["data"], imbalance=args["imbalance"], profile=args["profile"], root=args["root"])
    counts = bundle.class_counts
    console.print(
        f"{method} on {args['data']}: {len(bundle.train)} training images in {len(counts)} classes "
        f"of {max(counts)} to {min(counts)}, {len(bundle.test)} test images; {accelerator.device}, {run.precision}"
    )
    seeding.seed_everything(run.seed)
    plan = METHODS[method].build(
        settings, bundle, run=run, rank=accelerator.process_index, world_size=accelerator.num_processes
    )
    chosen = {name: value for name, value in args.items() if name not in _NOT_SETTINGS}
    chosen["class_counts"] = counts
    metrics = loop.train(
        plan,
        run=run,
        settings=json.loads(json.dumps(chosen)),  # as a checkpoint and metrics.json give them back
        facts=facts_of(bundle),
        class_counts=counts,
        groups=class_groups(counts),
        out=out,
        accelerator=accelerator,
    )
    if accelerator.is_main_process:
        if metrics is None:
            return 130
        console.print(report.table({str(out): metrics}, title="top-1 accuracy (%)"))
        console.print(f"written to {out}: metrics.json, per_class.png, checkpoint.pt, TensorBoard events")
    accelerator.end_training()
    return 0


def evaluate(argv: Sequence[str]) -> int:
    """evaluate a trained checkpoint on test images"""
    parser = _parser("eval", evaluate)
    parser.add_argument("--checkpoint", required=True, help="a run's folder, or its checkpoint file")
    parser.add_argument("--data", help="take the test images of this data set (the same classes); default: the run's")
    parser.add_argument("--root", default="data", help="folder of downloads and of the images that lists name")
    parser.add_argument("--out", help="JSON file to write; default: eval.json beside the checkpoint")
    args = _parse(parser, argv)

    from rich.console import Console

    from ltfast.data import class_groups
    from ltfast.engine import loop, metrics, report
    from ltfast.methods.restore import restore

    checkpoint = Path(args.checkpoint)
    accelerator = loop.make_accelerator("fp32")
    plan, facts = restore(
        checkpoint,
        source=args.data,
        root=args.root,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    groups = class_groups(facts["class_counts"])
    stage = plan.stages[-1].to(accelerator.device)
    result = metrics.evaluate(stage, plan.test, groups, len(facts["class_names"]), accelerator)
    if accelerator.is_main_process:
        folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
        out = Path(args.out) if args.out else folder / "eval.json"
        data = args.data or facts["settings"]["data"]
        report.write_json(
            out, {**result, "data": data, "checkpoint": str(checkpoint), "class_names": facts["class_names"]}
        )
        console = Console(soft_wrap=True, highlight=False)
        console.print(report.table({str(checkpoint): result}, title=f"top-1 accuracy (%) on {data}"))
        console.print(f"written to {out}")
    accelerator.end_training()
    return 0


def compare(argv: Sequence[str]) -> int:
    """compare finished runs side by side"""
    parser = _parser("report", compare)
    parser.add_argument("runs", nargs="+", help="folders of finished runs")
    args = _parse(parser, argv)

    from rich.console import Console

    from ltfast.engine import report

    rows = {run: report.read_metrics(Path(run)) for run in args.runs}
    console = Console(soft_wrap=True, highlight=False)
    console.print(report.table(rows, title="top-1 accuracy (%), and a step's loss forward and backward (ms)"))
    for run in args.runs:
        console.print(f"accuracy of each class: {Path(run) / report.PICTURE}")
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
    "report": compare,
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
        print("ltfast: interrupted; the same command continues from the last checkpoint", file=sys.stderr)
        return 130
    except Exception as error:
        if verbose:
            traceback.print_exc()
        if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] in _EXTRA:
            print(f"ltfast: {error.name} is not installed; the command line needs pip install 'ltfast[train]'",
                  file=sys.stderr)  # fmt: skip
            return 2
        bad_input = isinstance(error, (ValueError, TypeError, FileNotFoundError, argparse.ArgumentError))
        known = bad_input or isinstance(error, OSError) or type(error).__name__ == "TrainingError"
        name = "" if known else f"{type(error).__name__}: "
        hint = "" if known or verbose else " (-v shows where)"
        print(f"ltfast: error: {name}{_one_line(error)}{hint}", file=sys.stderr)
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


def _parse(parser: "jsonargparse.ArgumentParser", argv: Sequence[str]) -> Any:
    try:
        return parser.parse_args(list(argv))
    except argparse.ArgumentError as error:
        text = _one_line(error)
        # "Parser key "x": Expected a <class 'float'>. Got value: y" in the words of the other messages
        if match := re.match(
            r"Parser key \"(\w+)\": Expected an? (?:<class '(\w+)'>|(?:typing\.)?(.+?))\. Got value: (.*)", text
        ):
            name, kind, other, value = match.groups()
            raise UsageError(f"--{name.replace('_', '-')}: expected {kind or other}, got {value!r}") from error
        raise


def _options(settings: type) -> list[_Option]:
    hints = get_type_hints(settings)
    return [
        _Option(field.name, hints[field.name], field.default, field.metadata["help"])
        for field in dataclasses.fields(settings)
    ]


def _add_options(parser: "jsonargparse.ArgumentParser", title: str, options: Sequence[_Option]) -> set[str]:
    """Add a titled group of options; the names of those that may be none."""
    import jsonargparse

    group = parser.add_argument_group(title)
    for option in options:
        flag = f"--{option.name.replace('_', '-')}"
        if option.type is bool:
            group.add_argument(
                flag, action=jsonargparse.ActionYesNo(no_prefix="no-"), default=option.default, help=option.help
            )
        else:
            group.add_argument(flag, type=option.type, default=option.default, help=option.help)
    return {option.name for option in options if types.NoneType in get_args(option.type)}


def _nulls(argv: Sequence[str], optional: set[str]) -> list[str]:
    """`none` as YAML's null, for the options that may be none."""
    words = list(argv)
    flags = {f"--{name.replace('_', '-')}" for name in optional}
    for i, word in enumerate(words):
        flag, _, value = word.partition("=")
        if flag in flags and value == "none":
            words[i] = f"{flag}=null"
        elif word == "none" and i and words[i - 1] in flags:
            words[i] = "null"
    return words


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
