"""Command-line options for typed settings. Values have the same meaning as in a recipe."""

import argparse
import csv
import dataclasses
import types
from collections.abc import Collection, Iterable
from contextlib import suppress
from functools import partial
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ltfast.cli.errors import UsageError, flag
from ltfast.cli.parser import did_you_mean


@dataclasses.dataclass(frozen=True)
class Option:
    """A command-line option.

    Attributes:
        name: the setting's name, spelled as in Python and in recipes.
        type: int, float, str, bool, a Literal of words, a tuple of numbers, or a union of these.
        default: the default value. None, if the type does not include it, means that the help describes the default.
        help: the help text, one line.
    """

    name: str
    type: Any
    default: Any
    help: str


DATA = (
    Option(
        "data",
        str,
        "digits",
        "digits (built in), cifar10, cifar100, npz:FILE, folder:DIR, csv:FILE, list:FILE, torch/NAME or hfds/NAME",
    ),
    Option(
        "imbalance",
        float | None,
        None,
        "subsample the training images to a long tail with this ratio of the largest to the smallest class; none: "
        "use all images",
    ),
    Option(
        "profile",
        Literal["exponential", "pareto", "step"],
        "exponential",
        "shape of the long tail; step: half of the classes keep their images, the others are cut",
    ),
    Option(
        "validation",
        float | None,
        None,
        "share of the training images to take for validation, stratified and with whole groups; none: the source's own",
    ),
    Option(
        "test_fraction",
        float | None,
        None,
        "share of the images to take for testing, where the source has no test images; the same images for any --seed",
    ),
    Option(
        "folds",
        int | None,
        None,
        "number of folds of the training images, for cross-validation: stratified and with whole groups; the same ones "
        "for any --seed",
    ),
    Option(
        "fold", int | None, None, "with --folds: the fold, from 1, whose images are tested instead of the source's own"
    ),
    Option(
        "root",
        str | None,
        None,
        "folder of downloads and of the images in lists and tables; none: data, and for csv: the folder of FILE",
    ),
    Option("test", str | None, None, "test list, for list: without a test list next to FILE"),
    Option(
        "columns",
        str | None,
        None,
        "names of the columns of csv: that are not called path, label, split and group, such as "
        "path=filename,label=species",
    ),
    Option(
        "class_names",
        str | None,
        None,
        "text file with one class name per line in the order of the labels, for npz:, csv: and list:",
    ),
    Option(
        "mean",
        tuple[float, ...] | None,
        None,
        "mean of each channel for the normalisation, for pixel values from 0 to 1, with --std; none: ImageNet's for "
        "files, the data's own for arrays",
    ),
    Option("std", tuple[float, ...] | None, None, "standard deviation of each channel, see --mean"),
    Option(
        "groups",
        tuple[int, int] | Literal["auto"],
        (100, 20),
        "borders of the groups of classes in reports: many have more training images than the first, few have fewer "
        "than the second; auto: thirds of the classes",
    ),
    Option(
        "skip_broken",
        bool,
        False,
        "decode all images first, and skip those that cannot be decoded; without it, only the headers are checked, and "
        "an invalid one is an error",
    ),
)


Crops = Literal["five_crop", "ten_crop"]  # those of `ltfast.runs.crops`, whose import takes seconds

# of the commands that use a run's class scores
CALIBRATION = Option("calibration", bool, True, "use the run's calibration, if `ltfast calibrate` has made one")


def execution_options(images: str) -> list[Option]:
    """The options with which a command runs a trained network; `images` describes a batch."""
    from ltfast.engine import RunSettings

    shared = (option for option in options_of(RunSettings) if option.name in ("precision", "workers"))
    return [Option("batch_size", int, 256, images), *shared]


def options_of(settings: type) -> list[Option]:
    """One option for each field of a settings dataclass."""
    hints = get_type_hints(settings)
    return [
        Option(field.name, hints[field.name], field.default, field.metadata["help"])
        for field in dataclasses.fields(settings)
    ]


def add_options(parser: argparse.ArgumentParser, title: str, options: Iterable[Option]) -> None:
    """Add a titled group of options."""
    group = parser.add_argument_group(title)
    for option in options:
        add_option(group, option)


def add_option(group: "argparse.ArgumentParser | argparse._ArgumentGroup", option: Option) -> None:
    """Add an option to a parser or to a group of options."""
    if option.type is bool:
        action = group.add_argument(flag(option.name), action=argparse.BooleanOptionalAction, default=option.default)
    else:
        words = get_args(option.type) if get_origin(option.type) is Literal else ()
        action = group.add_argument(
            flag(option.name),
            type=partial(_from_text, option.type),
            default=option.default,
            metavar=f"{{{','.join(words)}}}" if words else None,
        )
    action.help = _help(option).replace("%", "%%")


def fitted(value: Any, type_: Any) -> Any:
    """Convert a recipe's value to the type of its setting: an int to a float, a list to a tuple, `none` to None.

    Raises:
        ValueError: the value does not have this type.
    """
    origin, parts = get_origin(type_), get_args(type_)
    if value == "none" and types.NoneType in parts:
        return None
    if origin is Literal:
        if isinstance(value, str) and value in parts:
            return value
    elif origin is tuple:
        if isinstance(value, list):
            each = (parts[0],) * len(value) if parts[-1] is Ellipsis else parts
            return tuple(fitted(one, part) for one, part in zip(value, each, strict=True))
    elif parts:
        for part in parts:
            with suppress(ValueError):
                return fitted(value, part)
    elif type_ is float and type(value) in (int, float):
        return float(value)
    elif type(value) is type_:
        return value
    raise ValueError(mismatch(value, type_))


def mismatch(value: Any, type_: Any) -> str:
    """A message about a value that does not have this type, with the closest valid word."""
    words = [word for part in (type_, *get_args(type_)) if get_origin(part) is Literal for word in get_args(part)]
    return f"expected {in_words(type_)}, got {value!r}{did_you_mean(str(value), words)}"


def in_words(type_: Any) -> str:
    """Describe the values of a type."""
    origin, parts = get_origin(type_), get_args(type_)
    if origin is Literal:
        return f"one of {', '.join(parts)}" if len(parts) > 1 else parts[0]
    if origin is tuple:
        names = [part.__name__ for part in parts if part is not Ellipsis]
        return ",".join([*names, *names, "..."] if parts[-1] is Ellipsis else names)
    if parts:
        return " or ".join(map(in_words, parts))
    return "none" if type_ is types.NoneType else type_.__name__


def as_word(value: Any) -> str:
    """A setting's value as it is written on the command line."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return "none" if value is None else str(value)


def _from_text(type_: Any, text: str) -> Any:
    """Parse the value of an option whose type is not bool."""
    from ltfast.recipe import plain_value

    with suppress(ValueError):
        return fitted(text, type_)
    try:
        values = [plain_value(word.strip()) for word in text.strip("[]").split(",")]
    except ValueError as error:  # such as 1:30 and 010, which YAML 1.1 reads as 90 and 8
        raise argparse.ArgumentTypeError(f"expected {in_words(type_)}, got {error}") from error
    listed = any(get_origin(part) is tuple for part in (type_, *get_args(type_)))
    try:
        return fitted(values if listed else plain_value(text.strip()), type_)
    except ValueError as error:
        raise argparse.ArgumentTypeError(mismatch(text, type_)) from error


def _help(option: Option) -> str:
    facts = []
    if option.type not in (bool, str) and get_origin(option.type) is not Literal:
        facts.append(in_words(option.type))
    with suppress(ValueError):
        value = list(option.default) if isinstance(option.default, tuple) else option.default
        fitted(value, option.type)
        facts.append(f"default: {'yes' if value is True else 'no' if value is False else as_word(option.default)}")
    return f"{option.help} ({'; '.join(facts)})" if facts else option.help


def as_columns(text: str | None) -> dict[str, str] | None:
    """The value of `--columns` as a mapping; a name that contains a comma or an equals sign is written in quotes.

    Raises:
        UsageError: the value is not of the form `name=column,name=column`.
    """
    if text is None:
        return None
    pairs = [word.partition("=") for word in next(csv.reader([text]), [])]
    if not pairs or not all(name and column for name, _, column in pairs):
        raise UsageError(f"--columns: expected name=column,name=column, got {text!r}")
    return {name.strip(): column.strip() for name, _, column in pairs}


def some_of(name: str, words: str | None, known: Collection[str]) -> list[str]:
    """Split comma-separated names, and check that they are known; an empty list for None."""
    names = [] if words is None else words.split(",")
    for word in names:
        if word not in known:
            raise UsageError(
                f"{flag(name)}: expected some of {', '.join(known)}, got {word!r}{did_you_mean(word, known)}"
            )
    return names
