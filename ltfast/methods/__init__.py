"""The methods: one file each, its stages in the paper's order.

A method's module has a dataclass `Settings`, whose fields are its command-line options, and

    build(settings, bundle, context: BuildContext) -> Plan

`Settings` derives from `BackboneSettings`: `restore` builds a trained method at the image size of its training and
without pretrained weights. It has the training's labels, mean and std, but not its images: `build` must not open one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ltfast.data.bundle import DataBundle
from ltfast.engine import Plan
from ltfast.errors import SettingError
from ltfast.methods import ce, decoupled_optimisation, dscl, livt, lpt, proco
from ltfast.methods.context import BuildContext
from ltfast.methods.settings import BackboneSettings


@dataclass(frozen=True)
class Method:
    """A published method.

    Attributes:
        settings: the dataclass of its options.
        build: makes its stages for a data set.
    """

    settings: type[BackboneSettings]
    build: Callable[[Any, DataBundle, BuildContext], Plan]


METHODS: dict[str, Method] = {
    "ce": Method(ce.Settings, ce.build),
    "do": Method(decoupled_optimisation.Settings, decoupled_optimisation.build),
    "dscl": Method(dscl.Settings, dscl.build),
    "livt": Method(livt.Settings, livt.build),
    "lpt": Method(lpt.Settings, lpt.build),
    "proco": Method(proco.Settings, proco.build),
}


def settings_of(method: str, values: dict[str, Any]) -> Any:
    """A method's settings from plain values.

    Raises:
        ValueError: an unknown method, or a setting out of its range.
    """
    if method not in METHODS:
        raise SettingError("method", f"one of {', '.join(METHODS)}", method)
    return METHODS[method].settings(**values)
