"""Schemas, which check the content of files before it is used.

A schema is a function of a value and the name of its place. It raises a `Mismatch` that names both:

    check = record({"stage": integer(0, 2), "losses": list_of(number(0))})
    check({"stage": 99, "losses": []}, "position")  # position.stage: expected an integer from 0 to 2, got 99
"""

import json
import reprlib
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from ltfast.engine.finite import is_finite

Schema = Callable[[Any, str], None]

_MAX = sys.float_info.max
_DTYPES = {
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128),
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
}


class Mismatch(ValueError):
    """A value does not match the schema of its place."""

    def __init__(self, place: str, expected: str, got: object) -> None:
        super().__init__(f"{place}: expected {expected}, got {_in_words(got)}".removeprefix(": "))
        self.expected = expected


def number(least: float = -_MAX, most: float = _MAX, *, above: float | None = None) -> Schema:
    """A finite int or float from `least` to `most`, and greater than `above`."""
    limits = "" if least == -_MAX else f" from {least:g}" + ("" if most == _MAX else f" to {most:g}")
    limits = limits if above is None else f" above {above:g}"

    def check(value: Any, place: str) -> None:
        fits = isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most
        if not fits or (above is not None and not value > above):
            raise Mismatch(place, f"a finite number{limits}", value)

    return check


def integer(least: int, most: int = 2**63 - 1) -> Schema:
    """An int from `least` to `most`."""
    limits = f"of at least {least}" if most == 2**63 - 1 else f"from {least} to {most}"

    def check(value: Any, place: str) -> None:
        if type(value) is not int or not least <= value <= most:
            raise Mismatch(place, f"an integer {limits}", value)

    return check


def anything(value: Any, place: str) -> None:
    """Any value; other code checks it."""


def text(value: Any, place: str) -> None:
    if type(value) is not str:
        raise Mismatch(place, "text", value)


def boolean(value: Any, place: str) -> None:
    if type(value) is not bool:
        raise Mismatch(place, "true or false", value)


def one_of(values: Iterable[Any]) -> Schema:
    """One of these values, which may have any types."""
    known = tuple(values)

    def check(value: Any, place: str) -> None:
        if not any(type(value) is type(one) and value == one for one in known):
            raise Mismatch(place, f"one of {', '.join(map(str, known))}", value)

    return check


def optional(schema: Schema) -> Schema:
    """None, or a value that matches `schema`."""

    def check(value: Any, place: str) -> None:
        if value is not None:
            schema(value, place)

    return check


def either(schemas: Iterable[Schema]) -> Schema:
    """A value that matches one of these schemas."""
    known = tuple(schemas)

    def check(value: Any, place: str) -> None:
        expected = []
        for schema in known:
            try:
                return schema(value, place)
            except Mismatch as mismatch:  # noqa: PERF203
                expected.append(mismatch.expected)
        raise Mismatch(place, " or ".join(expected), value)

    return check


def list_of(schema: Schema, length: int | None = None) -> Schema:
    """A list whose items match `schema`."""

    def check(value: Any, place: str) -> None:
        if not isinstance(value, list | tuple):
            raise Mismatch(place, "a list", value)
        if length is not None and len(value) != length:
            raise Mismatch(place, f"a list of {length}", value)
        for i, item in enumerate(value):
            schema(item, f"{place}[{i}]")

    return check


def mapping(schema: Schema, keys: type = str) -> Schema:
    """A mapping from names of one type to values that match `schema`."""

    def check(value: Any, place: str) -> None:
        if not isinstance(value, Mapping):
            raise Mismatch(place, "names and values", value)
        for name, item in value.items():
            if type(name) is not keys:
                raise Mismatch(place, "a number as a name" if keys is int else "text as a name", name)
            schema(item, _join(place, name))

    return check


def record(required: Mapping[str, Schema], may: Mapping[str, Schema] | None = None) -> Schema:
    """A mapping whose values match these schemas. The names of `may` are optional; other names are allowed."""

    def check(value: Any, place: str) -> None:
        if not isinstance(value, Mapping):
            raise Mismatch(place, "names and values", value)
        for name in required:
            if name not in value:
                raise Mismatch(place, f"the name {name}", list(value))
        for name, schema in {**required, **(may or {})}.items():
            if name in value:
                schema(value[name], _join(place, name))

    return check


def plain(value: Any, place: str, depth: int = 4) -> None:
    """A value that JSON can represent, at most `depth` levels deep."""
    if isinstance(value, list | tuple | dict) and depth:
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            plain(item, f"{place}[{name}]" if type(name) is int else _join(place, name), depth - 1)
    elif isinstance(value, int | float) and type(value) is not bool:
        number()(value, place)
    elif value is not None and type(value) not in (bool, str):
        raise Mismatch(place, "a number, text, true, false, nothing or a list of them", value)


def tensor(value: Any, place: str) -> None:
    """A dense tensor on the CPU whose elements are all stored, and finite."""
    if not isinstance(value, Tensor):
        raise Mismatch(place, "a tensor", value)
    dense = value.layout == torch.strided and value.device.type == "cpu" and value.dtype in _DTYPES
    # a view may claim more elements than its storage has
    if not dense or value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise Mismatch(place, "a dense tensor of an ordinary dtype", value)
    if not is_finite(value):
        raise Mismatch(place, "finite numbers", value[~value.isfinite()][0].item())


def like(example: Any) -> Schema:
    """A value with the form of an example: the same shape and dtype of a tensor; a number, negative only if the example
    is; a mapping with at least the same names; a list of the same length. Any other example matches any value.
    """

    def check(value: Any, place: str) -> None:
        if isinstance(example, Tensor):
            if not isinstance(value, Tensor) or (value.shape, value.dtype) != (example.shape, example.dtype):
                raise Mismatch(place, _in_words(example), value)
        elif isinstance(example, bool):
            boolean(value, place)
        elif isinstance(example, int | float):
            number(0 if example >= 0 else -_MAX)(value, place)
        elif isinstance(example, Mapping):
            record({name: like(item) for name, item in example.items()})(value, place)
        elif isinstance(example, list | tuple):
            list_of(anything, len(example))(value, place)
            for i, item in enumerate(example):
                like(item)(value[i], f"{place}[{i}]")

    return check


def settings_schema(of: type) -> Mapping[str, Schema]:
    """The schema of each field of a dataclass of settings, from the field's type."""
    return {name: _of_type(hint) for name, hint in get_type_hints(of).items()}


def _of_type(hint: Any) -> Schema:
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        schema = either(_of_type(part) for part in parts if part is not types.NoneType)
        return optional(schema) if types.NoneType in parts else schema
    if origin is Literal:
        return one_of(parts)
    if origin is tuple:
        return list_of(_of_type(parts[0]), None if Ellipsis in parts else len(parts))
    return {int: integer(-(2**63)), float: number(), str: text, bool: boolean}[hint]


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: the file is not JSON, or has a duplicate name, a number that is not finite, or very deep nesting.
    """
    try:
        return json.loads(path.read_bytes(), object_pairs_hook=_unique, parse_constant=_no_number)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"it has {reprlib.repr(name)} twice")
        found[name] = value
    return found


def _no_number(name: str) -> None:
    raise ValueError(f"expected finite numbers, got {name}")


def _in_words(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}, {value.dtype}, {value.layout}, on {value.device}"
    return reprlib.repr(value)


def _join(place: str, name: object) -> str:
    return f"{place}.{name}" if place else str(name)
