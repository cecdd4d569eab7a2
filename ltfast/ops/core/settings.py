"""The settings of an op: a named tuple, which PyTorch's schemas know as single arguments."""

from typing import Any, get_args, get_type_hints

_NAMES = {float: "float", int: "int", bool: "bool", str: "str"}


def schema_of(settings: type[Any]) -> str:
    """The fields of a ``NamedTuple`` as arguments of an op's schema: "float scale, float? threshold, str reduction"."""
    return ", ".join(f"{_schema_type(kind)} {name}" for name, kind in get_type_hints(settings).items())


def _schema_type(kind: Any) -> str:
    if kind in _NAMES:
        return _NAMES[kind]
    (given,) = (x for x in get_args(kind) if x is not type(None))  # "float | None"
    return f"{_NAMES[given]}?"
