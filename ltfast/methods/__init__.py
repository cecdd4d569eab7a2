"""The methods: one file each, its stages in the paper's order, and one in `settings` for its options.

A method's module has a function

    build(settings, bundle, *, run, rank=0, world_size=1, test_batch_size=256) -> Plan

Its `Settings` derive from `BackboneSettings`: `restore` builds a trained method at the image size of its training and
without pretrained weights. It has the training's labels, mean and std, but not its images: `build` must not open one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ltfast.errors import SettingError
from ltfast.methods import settings
from ltfast.methods.settings import BackboneSettings

if TYPE_CHECKING:
    from ltfast.engine import Plan


@dataclass(frozen=True)
class Method:
    """A published method.

    Attributes:
        settings: the dataclass of its options.
        build: makes its stages for a data set.
    """

    settings: type[BackboneSettings]
    build: "Callable[..., Plan]"


def _build_of(module: str) -> "Callable[..., Plan]":
    """A method's `build`. Its module is imported when it is called: PyTorch takes seconds, and `--help` needs none."""

    def build(*arguments: Any, **options: Any) -> "Plan":
        return import_module(f"ltfast.methods.{module}").build(*arguments, **options)

    return build


METHODS: dict[str, Method] = {
    "ce": Method(settings.ce.Settings, _build_of("ce")),
    "do": Method(settings.decoupled_optimisation.Settings, _build_of("decoupled_optimisation")),
    "dscl": Method(settings.dscl.Settings, _build_of("dscl")),
    "livt": Method(settings.livt.Settings, _build_of("livt")),
    "lpt": Method(settings.lpt.Settings, _build_of("lpt")),
    "proco": Method(settings.proco.Settings, _build_of("proco")),
}


def settings_of(method: str, values: dict[str, Any]) -> Any:
    """A method's settings from plain values.

    Raises:
        ValueError: an unknown method, or a setting out of its range.
    """
    if method not in METHODS:
        raise SettingError("method", f"one of {', '.join(METHODS)}", method)
    return METHODS[method].settings(**values)
