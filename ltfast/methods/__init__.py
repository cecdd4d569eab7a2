"""The methods. Each has a file with its stages in the paper's order, and a file in `settings` with its options.

A method's module has a function

    build(settings, bundle, context: BuildContext) -> Plan

Its `Settings` derive from `BackboneSettings`: `restore` builds a trained method with the image size of its training and
without pretrained weights. `restore` has the labels, mean and std of the training, but not its images, so `build` must
not open an image. The plan's `test` comes from `evaluation_batches`, whose transforms
`ltfast.runs` applies to other images too, and its `validation` from `validation_batches`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ltfast.errors import SettingError
from ltfast.methods import settings
from ltfast.methods.context import BuildContext
from ltfast.methods.settings import BackboneSettings

if TYPE_CHECKING:
    from ltfast.data.bundle import DataBundle
    from ltfast.engine import Plan


@dataclass(frozen=True)
class Method:
    """A published method.

    Attributes:
        settings: the dataclass of its options.
        build: makes its plan for a data set.
    """

    settings: type[BackboneSettings]
    build: "Callable[[Any, DataBundle, BuildContext], Plan]"


# A method is imported only when it is built: importing PyTorch takes seconds, and `--help` needs only the settings.
def _build_ce(own: Any, bundle: "DataBundle", context: BuildContext) -> "Plan":
    from ltfast.methods import ce

    return ce.build(own, bundle, context)


def _build_do(own: Any, bundle: "DataBundle", context: BuildContext) -> "Plan":
    from ltfast.methods import decoupled_optimisation

    return decoupled_optimisation.build(own, bundle, context)


def _build_dscl(own: Any, bundle: "DataBundle", context: BuildContext) -> "Plan":
    from ltfast.methods import dscl

    return dscl.build(own, bundle, context)


def _build_lift(own: Any, bundle: "DataBundle", context: BuildContext) -> "Plan":
    from ltfast.methods import lift

    return lift.build(own, bundle, context)


def _build_livt(own: Any, bundle: "DataBundle", context: BuildContext) -> "Plan":
    from ltfast.methods import livt

    return livt.build(own, bundle, context)


def _build_lpt(own: Any, bundle: "DataBundle", context: BuildContext) -> "Plan":
    from ltfast.methods import lpt

    return lpt.build(own, bundle, context)


def _build_proco(own: Any, bundle: "DataBundle", context: BuildContext) -> "Plan":
    from ltfast.methods import proco

    return proco.build(own, bundle, context)


METHODS: dict[str, Method] = {
    "ce": Method(settings.ce.Settings, _build_ce),
    "do": Method(settings.decoupled_optimisation.Settings, _build_do),
    "dscl": Method(settings.dscl.Settings, _build_dscl),
    "lift": Method(settings.lift.Settings, _build_lift),
    "livt": Method(settings.livt.Settings, _build_livt),
    "lpt": Method(settings.lpt.Settings, _build_lpt),
    "proco": Method(settings.proco.Settings, _build_proco),
}


def settings_of(method: str, values: dict[str, Any]) -> Any:
    """A method's settings from plain values.

    Raises:
        ValueError: the method is unknown, or a setting is out of its range.
    """
    if method not in METHODS:
        raise SettingError("method", f"one of {', '.join(METHODS)}", method)
    return METHODS[method].settings(**values)
