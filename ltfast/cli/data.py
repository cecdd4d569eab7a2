"""`ltfast data`."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ltfast.cli.options import DATA, Option, add_option, add_options, as_columns, as_word
from ltfast.cli.output import folder_at, print_table
from ltfast.cli.parser import command_parser
from ltfast.terminal import say

ABOUT = "look at a data set before training: counts, sizes, unreadable files, duplicates, and a command to start with"
FILES = ("data.json", "duplicates.csv", "counts.png")
_NOT_SHARED = ("data", "skip_broken", "mean", "std")


def data(argv: Sequence[str]) -> int:
    from ltfast.engine import check

    parser = command_parser("data", f"{ABOUT}. All images are decoded. Findings do not change the exit status", usage=
                            "ltfast data SOURCE [--out DIR] [OPTION ...]")  # fmt: skip
    parser.add_argument("source", metavar="SOURCE", help=f"the data set: {DATA[0].help}")
    parser.add_argument("--out", help=f"folder for {', '.join(FILES)}")
    options = [option for option in DATA if option.name not in _NOT_SHARED]
    add_options(parser, "data, as for ltfast train", options)
    add_option(
        parser,
        Option(
            "threads",
            int,
            None,
            "threads that decode images; default: as many as there are cores, and for files four more",
        ),
    )
    args = parser.parse(argv)
    check(args.threads is None or args.threads >= 1, "threads", "at least 1", args.threads)

    from ltfast.data.groups import check_borders, group_minima
    from ltfast.data.sources import read_parts
    from ltfast.engine.console import Console
    from ltfast.inspection.images import default_threads
    from ltfast.inspection.look import look
    from ltfast.inspection.text import class_table, lines

    check_borders(args.groups)
    given = {option.name: getattr(args, option.name) for option in options if option.name != "groups"}
    splits = read_parts(args.source, **{**given, "columns": as_columns(args.columns)})
    out = folder_at(args.out)
    total = sum(len(images) for images in (splits.train, splits.validation, splits.test) if images is not None)
    with Console().progress() as progress:
        task = progress.add_task("looking at images", total=total)
        found = look(
            args.source,
            splits,
            group_minima(splits.train.class_counts, args.groups),
            _options(options, args),
            threads=default_threads(splits.train) if args.threads is None else args.threads,
            step=lambda: progress.advance(task),
        )
    origins = {part: f" ({found.origins[part]})" for part in found.origins}
    images = ", ".join(f"{number:,} {part}{origins.get(part, '')}" for part, number in found.images.items())
    say(f"{args.source}: {images} images in {len(found.classes):,} classes")
    print_table(class_table(found))
    for line in lines(found):
        say(line)
    if out is not None:
        say(f"written to {out}: {', '.join(_write(out, found))}")
    return 0


def _options(options: Sequence[Option], args: Any) -> dict[str, str]:
    """The options that were given, as the command line has them."""
    values = {option.name.replace("_", "-"): (getattr(args, option.name), option.default) for option in options}
    return {name: as_word(value) for name, (value, default) in values.items() if value != default}


def _write(out: Path, found: Any) -> list[str]:
    """Write the findings, and return the names of the files."""
    from ltfast.engine.report import write_json
    from ltfast.files import replace_file
    from ltfast.inspection.picture import plot_counts

    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(found.rows())
    write_json(out / FILES[0], found.as_json())
    replace_file(out / FILES[1], lambda file: file.write(text.getvalue().encode(errors="surrogateescape")))
    drawn = plot_counts(out / FILES[2], found.classes, found.minima)
    return [*FILES[:2], *([FILES[2]] if drawn else [])]
