"""Recipes: YAML files with one setting per line.

A recipe maps names to numbers, words, and lists of these. Other YAML features raise an error that names the file and
line: anchors and aliases (a few lines can expand to gigabytes), tags, and values whose meaning depends on the YAML
version (`010` is 8 or 10, `1:30` is 90 or a word, `yes` is true or a word).
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from ltfast.errors import InputError, InputNotFoundError
from ltfast.terminal import shown

_MOST_BYTES = 2**16
_MOST_DEPTH = 3  # the recipe, its lists, and their values
_WORDS = {"true": True, "false": False, "null": None, "~": None, "": None}
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,99})")
_REAL = re.compile(r"[-+]?((0|[1-9][0-9]*)\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?(0|[1-9][0-9]*)[eE][-+]?[0-9]+")
_PLAIN = "decimal numbers, true, false, none, words, and lists of these"


@dataclass(frozen=True)
class Recipe:
    """The settings in a recipe.

    Attributes:
        name: the name or path by which the recipe was requested.
        values: setting names -> values.
        lines: setting names -> line numbers, starting at 1.
    """

    name: str
    values: Mapping[str, Any]
    lines: Mapping[str, int]

    def where(self, key: str) -> str:
        """The location of a setting, as `name:line`."""
        return f"{self.name}:{self.lines[key]}"


def recipe_names() -> list[str]:
    """The names of the recipes shipped with ltfast, as METHOD/NAME."""
    folder = resources.files("ltfast") / "recipes"
    return sorted(
        f"{method.name}/{file.name.removesuffix('.yaml')}"
        for method in folder.iterdir()
        if method.is_dir()
        for file in method.iterdir()
        if file.name.endswith(".yaml")
    )


def read_recipe(name: str) -> Recipe:
    """Read a recipe from a file, or one of `recipe_names()`.

    Raises:
        InputNotFoundError: there is neither a file nor a recipe of this name.
        InputError: the file cannot be read or is not a recipe; the message names the file and the line.
    """
    text = _text(name)
    try:
        node = _Loader(text).get_single_node()
        if node is None:
            raise InputError(f"{name}: expected names and values, one pair per line (epochs: 30), got an empty file")
        if not isinstance(node, yaml.MappingNode):
            raise _Refused(node, "names and values, one pair per line (epochs: 30)", "something else")
        values: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            key = _key(key_node)
            if key in values:
                raise _Refused(key_node, f"one value for {key}", f"another one; the first is in line {lines[key]}")
            values[key], lines[key] = _value(key, value_node), key_node.start_mark.line + 1
    except _Refused as error:
        raise InputError(f"{name}:{error.line}: expected {error.expected}, got {error.got}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{name}{_place(error)}: expected YAML: {_reason(error)}") from error
    return Recipe(name, values, lines)


def plain_value(text: str) -> Any:
    """Parse an unquoted value of a recipe or of the command line: a number, true, false, None (null, ~) or a word.

    Raises:
        ValueError: the meaning depends on the YAML version; the message gives the value's meaning in YAML 1.1.
    """
    folded = text.lower() if text in (text.lower(), text.title(), text.upper()) else text
    if folded in _WORDS:
        return _WORDS[folded]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _REAL.fullmatch(text):
        if not math.isfinite(number := float(text)):
            raise ValueError(f"{text}, which overflows float64")
        return number
    loader = yaml.SafeLoader("")
    node = yaml.ScalarNode(loader.resolve(yaml.ScalarNode, text, (True, False)), text)
    if node.tag == "tag:yaml.org,2002:str":
        return text
    try:
        meaning = f"which YAML 1.1 reads as {loader.construct_object(node)!r}"
    except (yaml.YAMLError, ValueError):
        meaning = "which has a special meaning in YAML 1.1"
    raise ValueError(f"{text}, {meaning}")


class _Loader(yaml.SafeLoader):
    """Raises an error for anything but a mapping of names to scalars and lists, before it is composed."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise _Refused(event, "no aliases", f"*{event.anchor}")
        if event.anchor is not None:
            raise _Refused(event, "no anchors", f"&{event.anchor}")
        if event.tag is not None:
            raise _Refused(event, "no tags", event.tag)
        self.depth += 1
        if self.depth > _MOST_DEPTH:
            raise _Refused(event, _PLAIN, "a list or names and values inside another")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Refused(Exception):
    """The recipe has invalid content at a node or event."""

    def __init__(self, node: Any, expected: str, got: str) -> None:
        super().__init__(expected)
        self.line = node.start_mark.line + 1
        self.expected, self.got = expected, got


def _text(name: str) -> str:
    path = Path(name)
    try:
        if path.is_file():
            with open(path, "rb") as file:
                data = file.read(_MOST_BYTES + 1)
        elif path.exists():
            kind = "a folder" if path.is_dir() else "a device or pipe"
            raise InputError(f"{name}: expected a recipe file, got {kind}")
        elif name in recipe_names():
            data = (resources.files("ltfast") / "recipes" / f"{name}.yaml").read_bytes()
        else:
            raise InputNotFoundError(
                f"{name}: there is no such file or recipe; expected a file or one of {', '.join(recipe_names())}"
            )
    except (OSError, ValueError) as error:  # ValueError: the name contains a character that no path may contain
        if isinstance(error, InputError | InputNotFoundError):
            raise
        raise InputError(f"{name}: cannot be read: {error}") from error
    if len(data) > _MOST_BYTES:
        raise InputError(f"{name}: expected a recipe of at most {_MOST_BYTES} bytes, got more")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{name}:{line}: expected text in UTF-8, got the byte {data[error.start]:#04x}") from error


def _key(node: Any) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise _Refused(node, "the name of a setting before the colon", "something else")
    if node.tag == "tag:yaml.org,2002:merge":
        raise _Refused(node, "the name of a setting", "a merge key (<<)")
    return node.value


def _value(key: str, node: Any) -> Any:
    if isinstance(node, yaml.SequenceNode):
        if any(not isinstance(item, yaml.ScalarNode) for item in node.value):
            raise _Refused(node, f"{key}: {_PLAIN}", "a list or names and values inside a list")
        return [_value(key, item) for item in node.value]
    if not isinstance(node, yaml.ScalarNode):
        raise _Refused(node, f"{key}: {_PLAIN}", "names and values")
    if shown(node.value) != node.value:
        raise _Refused(node, f"{key}: text on one line, without control characters", _short(repr(node.value)))
    if node.style is not None:  # in quotes
        return node.value
    try:
        return plain_value(node.value)
    except ValueError as error:
        raise _Refused(node, f"{key}: {_PLAIN} (quote other text)", _short(str(error))) from error


def _place(error: Any) -> str:
    mark = getattr(error, "problem_mark", None)
    return "" if mark is None else f":{mark.line + 1}"


def _reason(error: Any) -> str:
    if getattr(error, "problem", None):
        return str(error.problem)
    return " ".join(str(error).split())


def _short(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:100]}..."
