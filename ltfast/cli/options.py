"""Typed settings as options of the command line."""

import argparse
import dataclasses
import re
import types
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from ltfast.cli.errors import UsageError, one_line

if TYPE_CHECKING:
    import jsonargparse


@dataclasses.dataclass(frozen=True)
class Option:
    name: str
    type: Any
    default: Any
    help: str


DATA = (
    Option(
        "data",
        str,
        "digits",
        "digits (built in), cifar10, cifar100, npz:FILE, folder:DIR, list:FILE, torch/NAME or hfds/NAME",
    ),
    Option(
        "imbalance",
        float | None,
        None,
        "cut the training images to a long tail: the largest class's count over the smallest's; none: as they are",
    ),
    Option("profile", Literal["exponential", "pareto"], "exponential", "form of that long tail"),
    Option("root", str, "data", "folder of downloads and of the images that lists name"),
    Option(
        "class_names",
        str | None,
        None,
        "text file with the names of the classes, a name a line in the order of the labels; for npz: and list:",
    ),
    Option(
        "skip_broken",
        bool,
        False,
        "decode all images first, and leave out those that cannot be; without it, only headers are looked at, and a "
        "bad one is refused",
    ),
)


def make_parser(name: str, about: str) -> "jsonargparse.ArgumentParser":
    import jsonargparse

    parser = jsonargparse.ArgumentParser(
        prog=f"ltfast {name}", description=capital(about), exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="show a traceback if something fails")
    return parser


def options_of(settings: type) -> list[Option]:
    hints = get_type_hints(settings)
    return [
        Option(field.name, hints[field.name], field.default, field.metadata["help"])
        for field in dataclasses.fields(settings)
    ]


def add_options(parser: "jsonargparse.ArgumentParser", title: str, options: Sequence[Option]) -> None:
    """Add a titled group of options."""
    import jsonargparse

    group = parser.add_argument_group(title)
    for option in options:
        word = flag(option.name)
        if option.type is bool:
            group.add_argument(
                word, action=jsonargparse.ActionYesNo(no_prefix="no-"), default=option.default, help=option.help
            )
        else:
            group.add_argument(word, type=option.type, default=option.default, help=option.help)


def parse(parser: "jsonargparse.ArgumentParser", argv: Sequence[str], types_: Mapping[str, Any] | None = None) -> Any:
    """The arguments; `types_` are those of the options whose values are read as a recipe's are."""
    try:
        return parser.parse_args(_yaml_words(argv, types_ or {}))
    except argparse.ArgumentError as error:
        raise UsageError(_reworded(error, types_ or {})) from error


def _reworded(error: Exception, types_: Mapping[str, Any]) -> str:
    """What jsonargparse says, in the words of the other messages."""
    text = one_line(error)
    if match := re.match(r'Parser key "(\w+)": .*(?:Got|Given) value: (.*)', text):
        name, value = match.groups()
        if name in types_:
            return f"{flag(name)}: expected {in_words(types_[name])}, got {value!r}"
    return re.sub(r"(?<=arguments are required: )(out|checkpoint)$", lambda match: flag(match[0]), text)


def _yaml_words(argv: Sequence[str], types_: Mapping[str, Any]) -> list[str]:
    """`none` as YAML's null and `60,80` as its [60,80], for the options of such types."""
    words = list(argv)
    by_flag = {flag(name): type_ for name, type_ in types_.items()}
    for i, word in enumerate(words):
        given, equals, value = word.partition("=")
        if equals and given in by_flag:
            words[i] = f"{given}={_yaml(given, value, by_flag[given])}"
        elif i and words[i - 1] in by_flag:
            words[i] = _yaml(words[i - 1], word, by_flag[words[i - 1]])
    return words


def _yaml(given: str, value: str, type_: Any) -> str:
    from ltfast.recipe import plain_value

    parts = get_args(type_)
    if value == "none" and may_be_none(type_):
        return "null"
    if type_ is bool or str in (type_, *parts):
        return value
    try:
        for word in value.strip("[]").split(","):
            if plain_value(word.strip()) is None and not may_be_none(type_):
                raise ValueError(repr(value))
    except ValueError as error:  # 1:30 and 010, say, which jsonargparse takes for 90 and 10
        raise UsageError(f"{given}: expected {in_words(type_)}, got {error}") from error
    listed = any(get_origin(part) is tuple for part in (type_, *parts)) and not fits(value, type_)
    return f"[{value}]" if listed and not value.startswith("[") else value


def fits(value: Any, type_: Any) -> bool:
    origin, parts = get_origin(type_), get_args(type_)
    if origin is Literal:
        return isinstance(value, str) and value in parts
    if origin is tuple:
        each = (parts[0],) * len(value) if isinstance(value, list) and parts[-1] is Ellipsis else parts
        return isinstance(value, list) and len(value) == len(each) and all(map(fits, value, each))
    if parts:
        return any(fits(value, part) for part in parts)
    if type_ is float:
        return type(value) in (int, float)
    return type(value) is type_


def may_be_none(type_: Any) -> bool:
    return types.NoneType in get_args(type_)


def in_words(type_: Any) -> str:
    origin, parts = get_origin(type_), get_args(type_)
    if origin is Literal:
        return f"one of {', '.join(parts)}" if len(parts) > 1 else parts[0]
    if origin is tuple:
        return f"{parts[0].__name__},{parts[0].__name__},..."
    if parts:
        return " or ".join(map(in_words, parts))
    return "none" if type_ is types.NoneType else type_.__name__


def is_given(name: str, argv: Sequence[str]) -> bool:
    """Whether an option is on the command line."""
    return any(word.split("=")[0] in (flag(name), f"--no-{flag(name)[2:]}") for word in argv)


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def in_flags(text: str) -> str:
    """A message about a setting, `batch_size: expected ...`, with the flag for its name."""
    from ltfast.engine import RunSettings
    from ltfast.methods import METHODS

    name, colon, rest = text.partition(": ")
    name = "data" if name == "source" else name  # the word of ltfast.data
    settings: list[type] = [RunSettings, *(method.settings for method in METHODS.values())]
    options = [*DATA, *(option for owner in settings for option in options_of(owner))]
    known = name in ("checkpoint", "out", *(option.name for option in options))
    return f"{flag(name)}{colon}{rest}" if colon and known else text


def capital(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
