"""`ltfast bench` and `ltfast bench step`."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ltfast.cli.options import Option, add_option, some_of
from ltfast.cli.output import folder_at, print_table
from ltfast.cli.parser import command_parser
from ltfast.terminal import say

if TYPE_CHECKING:
    import torch
    from rich.table import Table


ABOUT = "time each op, its common alternatives and the hardware lower bound; `bench step` times training steps"
_STEP = "time complete training steps with the published losses and with ltfast's"


def bench(argv: Sequence[str]) -> int:
    if argv and argv[0] == "step":
        return bench_step(argv[1:])
    from ltfast.benchmark.cases import SHAPES, benches

    parser = command_parser("bench", ABOUT, commands=["step"])
    group = parser.add_argument_group("what to time")
    group.add_argument("--ops", help="comma-separated names of ops; default: all; an unknown name lists them")
    group.add_argument("--shapes", help=f"comma-separated subset of {', '.join(SHAPES)}; default: all on a GPU, the "
                       "first three on a CPU")  # fmt: skip
    group.add_argument("--peers", help="comma-separated names of the implementations to compare with, as in the "
                       "tables, or none; default: all")  # fmt: skip
    _add_bench_options(group)
    group.add_argument(
        "--out",
        help="folder for results.json, speedups.png, roofline.png and growth.png, "
        "and results.jsonl, which grows with each case",
    )
    group = parser.add_argument_group("comparison of two results, without timing")
    group.add_argument("--compare", nargs=2, metavar=("BEFORE", "AFTER"), help="two results.json files or their "
                       "folders: show what became slower, and exit with status 1 if anything did")  # fmt: skip
    add_option(group, Option("threshold", float, 1.5, "report a time as slower if it grew by more than this factor and "
                             "the interquartile ranges do not overlap"))  # fmt: skip
    args = parser.parse(argv)

    shapes = some_of("shapes", args.shapes, SHAPES)

    from ltfast.benchmark import results

    if args.compare is not None:
        before, after = (results.read(Path(name)) for name in args.compare)
        shown, found = results.slower(before, after, args.threshold)
        print_table(shown)
        say(f"slower: {', '.join(found) or 'nothing'}")
        return 1 if found else 0

    ops = some_of("ops", args.ops, benches()) or list(benches())

    from ltfast.benchmark import pictures, run

    device = _bench_device(args)
    out = folder_at(args.out)
    cases = run.select(
        device,
        ops=ops,
        shapes=shapes or (SHAPES if device.type == "cuda" else SHAPES[:3]),
        peers=None if args.peers is None else [] if args.peers == "none" else _names(args.peers),
    )

    growth = [] if out is None else run.growths(device, ops)
    measured = run.bench(device, cases, growth=growth, seconds=args.seconds, out=out, show=_shower(results.table))
    for line in [*results.describe_goals(measured["goals"]), *results.describe(measured).split("\n")]:
        say(line)
    if out is not None:
        draw = {"speedups.png": pictures.speedups, "roofline.png": pictures.roofline, "growth.png": pictures.growth}
        drawn = [name for name, picture in draw.items() if picture(out / name, measured)]
        say(f"written to {out}: {', '.join([results.RESULTS, results.LINES, *drawn])}")
    return _status(measured)


def bench_step(argv: Sequence[str]) -> int:
    from ltfast.benchmark.steps import NAMES

    parser = command_parser("bench step", _STEP)
    group = parser.add_argument_group("what to time")
    group.add_argument("--methods", help=f"comma-separated subset of {', '.join(NAMES)}; default: all")
    _add_bench_options(group)
    group.add_argument("--out", help="folder for steps.json, and steps.jsonl, which grows with each method")
    args = parser.parse(argv)

    methods = some_of("methods", args.methods, NAMES) or NAMES

    from ltfast.benchmark import results, step

    device = _bench_device(args)
    out = folder_at(args.out)
    measured = step.bench(device, methods, seconds=args.seconds, out=out, show=_shower(results.step_table))
    if out is not None:
        say(f"written to {out}: {step.STEPS}, {step.LINES}")
    return _status(measured)


def _names(peers: str) -> list[str]:
    """The names between commas. A name may have a comma itself, with a space after it: "attention, flash"."""
    return re.split(r",(?! )", peers)


def _shower(table: "Callable[[Sequence[Any]], Table]") -> Callable[[Sequence[Any], Sequence[Any]], None]:
    """Prints rows as this table, and a line for each failure."""

    def show(rows: Sequence[Any], missing: Sequence[Any]) -> None:
        from ltfast.benchmark import results

        if rows:
            print_table(table(rows))
        for line in results.failures(missing):
            say(line)

    return show


def _status(measured: Mapping[str, Any]) -> int:
    """The exit status: 1 if something failed."""
    return 1 if any(row["failed"] for row in measured["missing"]) else 0


def _add_bench_options(group: Any) -> None:
    add_option(group, Option("device", Literal["cpu", "cuda"], None, "device to time on; default: cuda if available"))
    add_option(group, Option("seconds", float, 0.2, "seconds of timed calls per implementation and size"))


def _bench_device(args: Any) -> "torch.device":
    import torch

    from ltfast.engine import check

    check(args.seconds > 0, "seconds", "a positive number", args.seconds)
    gpu = torch.cuda.is_available()
    check(gpu or args.device != "cuda", "device", "cpu, since PyTorch finds no GPU", args.device)
    torch.manual_seed(0)
    return torch.device(args.device or ("cuda" if gpu else "cpu"))
