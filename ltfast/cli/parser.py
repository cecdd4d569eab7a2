"""The argument parser of a command. Invalid arguments raise a UsageError that suggests a correction."""

import argparse
import re
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from ltfast.cli.errors import UsageError


class Parser(argparse.ArgumentParser):
    """The argument parser of a command.

    Args:
        name: the name of the command.
        description: what the command does.
        commands: the names of its subcommands.
        elsewhere: options of other methods, each with a description ("an option of method dscl").
        options: further arguments for `argparse.ArgumentParser`.
    """

    def __init__(
        self,
        name: str,
        description: str,
        *,
        commands: Collection[str] = (),
        elsewhere: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        prog = f"ltfast {name}".rstrip()
        super().__init__(prog, description=description, exit_on_error=False, allow_abbrev=False, **options)
        self._negative_number_matcher = re.compile(r"-[\d.]")  # by default, argparse reads -1e-3 as an option
        self._commands = commands
        self._elsewhere = elsewhere or {}

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse the arguments.

        Raises:
            UsageError: an option is unknown or missing, or a value is invalid.
        """
        if not asks_help(argv):
            self._check_names(argv)
        try:
            args, rest = self.parse_known_args(argv)
        except argparse.ArgumentError as error:
            name = error.argument_name
            raise UsageError(error.message if name is None else f"{name}: {error.message}") from error
        if rest:
            hint = did_you_mean(rest[0], self._commands) or f"; see `{self.prog} --help`"
            raise UsageError(f"{self.prog} does not accept {' '.join(rest)!r}{hint}")
        return args

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)

    def _check_names(self, argv: Sequence[str]) -> None:
        """Check for unknown options first: argparse would report a mistyped required option as missing."""
        for word in argv:
            name = word.split("=")[0]
            if name == "--":
                return
            if not name.startswith("--") or " " in name or name in self._option_string_actions:
                continue
            if what := self._elsewhere.get(name) or self._elsewhere.get(name.replace("--no-", "--", 1)):
                raise UsageError(f"{name} is {what}")
            near = did_you_mean(name, self._option_string_actions)
            if not near and (other := get_close_matches(name, self._elsewhere, n=1)):
                near = f"; did you mean {other[0]}, which is {self._elsewhere[other[0]]}?"
            raise UsageError(f"{name}: there is no such option{near or f'; see `{self.prog} --help`'}")


def command_parser(name: str, about: str, **options: Any) -> Parser:
    """Create a parser with the options shared by all commands.

    Args:
        name: the name of the command.
        about: what the command does, as a phrase without capital and full stop.
        options: further arguments for `Parser`.
    """
    parser = Parser(name, f"{about[0].upper()}{about[1:]}.", **options)
    parser.add_argument("-v", "--verbose", action="store_true", help="show the traceback of an error")
    return parser


def did_you_mean(word: str, known: Collection[str]) -> str:
    """The end of a message about an unknown word: a hint at the closest known word, or an empty string."""
    near = get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def value_of(flag: str, argv: Sequence[str]) -> str | None:
    """The value of an option on an unparsed command line; None if it is absent."""
    value = None
    for word, after in zip(argv, [*argv[1:], ""], strict=False):
        if word.startswith(f"{flag}="):
            value = word.removeprefix(f"{flag}=")
        elif word == flag and after and not after.startswith("-"):
            value = after
    return value


def asks_help(argv: Sequence[str]) -> bool:
    return not {"-h", "--help"}.isdisjoint(argv)


def is_given(flag: str, argv: Sequence[str]) -> bool:
    """Whether an option or its `--no-` form is on the command line."""
    return any(word.split("=")[0] in (flag, f"--no-{flag.removeprefix('--')}") for word in argv)
