"""The command line: `ltfast data | train | eval | calibrate | predict | export | report | bench | tune | info`.

Each command has its own file. Packages that are slow to import (torch, timm, ...) are imported by the command that
needs them, after its options are parsed.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence

import ltfast
from ltfast.cli import bench, calibrate, data, evaluate, export, info, predict, report, train, tune
from ltfast.cli.errors import UsageError, failed, interrupted, noted_interrupts, say_what_is_lost, shown_warnings
from ltfast.cli.parser import Parser, did_you_mean, is_given, value_of
from ltfast.terminal import tolerant_streams

COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "data": data.data,
    "train": train.train,
    "eval": evaluate.evaluate,
    "calibrate": calibrate.calibrate,
    "predict": predict.predict,
    "export": export.export,
    "report": report.compare,
    "bench": bench.bench,
    "tune": tune.tune,
    "info": info.info,
}
_ABOUT = {
    "data": data.ABOUT,
    "train": train.ABOUT,
    "eval": evaluate.ABOUT,
    "calibrate": calibrate.ABOUT,
    "predict": predict.ABOUT,
    "export": export.ABOUT,
    "report": report.ABOUT,
    "bench": bench.ABOUT,
    "tune": tune.ABOUT,
    "info": info.ABOUT,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: 0, 1 (failed), 2 (invalid usage or input) or 130 (interrupted).
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    # PyTorch logs this on machines that have nvcc but no GPU
    logging.getLogger("torch.utils.cpp_extension").addFilter(lambda record: "No CUDA runtime" not in record.msg)
    with tolerant_streams() as output, shown_warnings(), noted_interrupts() as interrupts:
        try:
            status = _run(argv, interrupts)
        finally:
            lost = say_what_is_lost(output)
        return 1 if lost and not _writes_files(argv) else status


def _run(argv: list[str], interrupts: Sequence[int]) -> int:
    try:
        if argv and argv[0] in COMMANDS:
            return COMMANDS[argv[0]](argv[1:])
        if argv and not argv[0].startswith("-"):
            raise UsageError(
                f"{argv[0]!r} is not a command; expected one of {', '.join(COMMANDS)}{did_you_mean(argv[0], COMMANDS)}"
            )
        _top_level().parse(argv or ["--help"])
        raise UsageError(f"expected a command, one of {', '.join(COMMANDS)}")
    except KeyboardInterrupt:
        return _interrupted(argv)
    except Exception as error:
        # an interrupt during an import may surface as any exception of the imported library
        return _interrupted(argv) if interrupts else failed(error, verbose=bool({"-v", "--verbose"} & set(argv)))


def _interrupted(argv: Sequence[str]) -> int:
    out = value_of("--out", argv)
    if argv[:1] == ["train"] and out is not None and train.continues(out):
        return interrupted("; the same command continues from the last checkpoint")
    if argv[:1] == ["predict"] and predict.continues(out):
        return interrupted("; the same command continues after the last row")
    return interrupted()


def _writes_files(argv: Sequence[str]) -> bool:
    reports = argv[:2] in (["report", "importance"], ["report", "prompts"])
    return (
        argv[:1] in (["train"], ["eval"], ["calibrate"], ["predict"], ["export"]) or reports or is_given("--out", argv)
    )


def _top_level() -> Parser:
    commands = "\n".join(f"  {name:10}{_ABOUT[name]}" for name in COMMANDS)
    parser = Parser(
        "",
        f"Fast long-tailed image classification.\n\ncommands:\n{commands}",
        usage="ltfast COMMAND [OPTION ...]",
        epilog="`ltfast COMMAND --help` shows a command's options, and `ltfast train --method M --help` those of "
        "method M.\nStart with: ltfast train --out run",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ltfast {ltfast.__version__}")
    return parser
