"""The methods: one file each, its stages in the paper's order.

A method's module has a dataclass `Settings`, whose fields are its command-line options, and

    build(settings, bundle, *, run, rank, world_size) -> Plan
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ltfast.engine import Plan
from ltfast.methods import ce


@dataclass(frozen=True)
class Method:
    """A published method.

    Attributes:
        settings: the dataclass of its options.
        build: makes its stages for a data set.
    """

    settings: type[Any]
    build: Callable[..., Plan]


METHODS: dict[str, Method] = {"ce": Method(ce.Settings, ce.build)}


def settings_of(method: str, values: dict[str, Any]) -> Any:
    """A method's settings from plain values.

    Raises:
        ValueError: an unknown method, or a setting out of its range.
    """
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    return METHODS[method].settings(**values)
