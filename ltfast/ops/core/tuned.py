"""Launch settings that `ltfast tune` has found on a chip.

A rule in an op's ``launch.py`` that is decorated with ``tunable`` is asked as before. Its answer is what was found on
this chip: by the user, in ``user_file``; else what the package ships in ``SHIPPED``; else what the rule says.
``torch.use_deterministic_algorithms(True)`` leaves the rule alone, because other settings may add in another order.
"""

import functools
import json
import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
import triton

from ltfast.errors import InputError
from ltfast.files import user_cache
from ltfast.ops.core.launch import Chip, Launch
from ltfast.ops.core.warn import warn_caller
from ltfast.version import release

SHIPPED = Path(__file__).parents[1] / "tuned"

L = TypeVar("L", bound=Launch)


@dataclass(eq=False)
class Tunable(Generic[L]):
    """A rule for a launch.

    Attributes:
        rule: a pure function of sizes, dtypes and the ``Chip``, which is among its arguments.
        candidates: launch of the rule -> other launches that may be faster.
        name: "op.function".
    """

    rule: Callable[..., L]
    candidates: Callable[[L], Iterable[L]]
    name: str = field(init=False)
    _found: dict[Hashable, L] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self.name = f"{self.rule.__module__.split('.')[-2]}.{self.rule.__name__}"
        functools.update_wrapper(self, self.rule)
        TUNABLES[self.name] = self

    def __call__(self, *arguments: Hashable) -> L:
        if _trial is not None:
            return _trial.launch(self, arguments)
        if torch.are_deterministic_algorithms_enabled():
            return self.rule(*arguments)
        launch = self._found.get(arguments)
        if launch is None:
            launch = self._found[arguments] = self._look_up(arguments)
        return launch

    def _look_up(self, arguments: Sequence[Any]) -> L:
        launch = self.rule(*arguments)
        chip = next(x for x in arguments if isinstance(x, Chip))
        changes = found_on(chip.name).get((self.name, kind_of(arguments)), {})
        if unknown := changes.keys() - {x.name for x in fields(launch)}:
            warn_caller(f"{self.name} has no setting {', '.join(sorted(unknown))}: run `ltfast tune` again")
            return launch
        return replace(launch, **changes)

    def forget(self) -> None:
        """Look everything up again."""
        self._found.clear()


TUNABLES: dict[str, Tunable[Any]] = {}


def tunable(candidates: Callable[[L], Iterable[L]]) -> Callable[[Callable[..., L]], Tunable[L]]:
    """Decorate a rule; see ``Tunable``."""
    return lambda rule: Tunable(functools.cache(rule), candidates)


def kind_of(arguments: Sequence[Any]) -> str:
    """The arguments for which one setting serves: sizes up to a power of two; dtypes and flags as they are."""
    words = []
    for x in arguments:
        if isinstance(x, int) and not isinstance(x, bool):
            words.append(str(triton.next_power_of_2(x)))
        elif not isinstance(x, Chip):
            words.append(str(x).removeprefix("torch."))
    return " ".join(words)


def warps_and_registers(launch: L) -> Iterator[L]:
    """The same launch with fewer and more warps, and with other limits of registers."""
    for num_warps in (launch.num_warps // 2, launch.num_warps, 2 * launch.num_warps):
        if 1 <= num_warps <= 16:
            # only NVIDIA's compiler takes a limit
            for maxnreg in {launch.maxnreg, 64, 128, None} if torch.version.hip is None else {None}:
                if (maxnreg or 0) * 32 * num_warps <= 65_536:  # all that a multiprocessor has
                    yield replace(launch, num_warps=num_warps, maxnreg=maxnreg)


@dataclass
class Trial:
    """What the rules are asked, and what they answer, inside ``trial``.

    Attributes:
        forced: (name, kind) -> the launch to answer; the rule's for all others.
        asked: (name, kind) -> the rule and the launch that it chose.
    """

    forced: dict[tuple[str, str], Launch]
    asked: dict[tuple[str, str], tuple[Tunable[Any], Launch]] = field(default_factory=dict)

    def launch(self, rule: Tunable[L], arguments: Sequence[Any]) -> Any:
        key = rule.name, kind_of(arguments)
        chosen = rule.rule(*arguments)
        self.asked.setdefault(key, (rule, chosen))
        return self.forced.get(key, chosen)


_trial: Trial | None = None


@contextmanager
def trial(forced: dict[tuple[str, str], Launch] | None = None) -> Iterator[Trial]:
    """Let the rules of this process answer with ``forced`` launches, and record what they are asked."""
    global _trial
    before, _trial = _trial, Trial(forced or {})
    try:
        yield _trial
    finally:
        _trial = before


def file_name(chip: str) -> str:
    return "-".join(chip.split()) + ".json"


def user_file(chip: str) -> Path | None:
    """The file of the user's own settings; None for a user without a home."""
    cache = user_cache()
    return None if cache is None else cache / "launches" / file_name(chip)


def files(chip: str) -> list[Path]:
    """The files of settings for a chip that exist, the one that counts more first."""
    # os.path.isfile is False, and Path.is_file an error, in a folder that this user may not search
    return [path for path in (user_file(chip), SHIPPED / file_name(chip)) if path is not None and os.path.isfile(path)]


@functools.cache
def found_on(chip: str) -> dict[tuple[str, str], dict[str, Any]]:
    """(name, kind) -> the fields of the launch that differ from the rule's. A file of other versions does not count."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for path in reversed(files(chip)):
        found |= _read_or_warn(path)
    return found


def _read_or_warn(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    try:
        return read(path)
    except InputError as error:
        warn_caller(f"{error}; these launch settings are not used: run `ltfast tune` again, or delete the file")
        return {}


def versions() -> dict[str, str]:
    """What a setting depends on beside the chip."""
    return {"ltfast": release(), "triton": triton.__version__}


def read(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The settings in a file that ``write`` has made.

    Raises:
        InputError: it cannot be read, or is of other versions.
    """
    try:
        content = json.loads(path.read_text())
        made = dict(content["versions"])
        settings = {(row["rule"], row["arguments"]): dict(row["changes"]) for row in content["launches"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a file of launch settings: {type(error).__name__}: {error}") from error
    if made != versions():
        raise InputError(f"{path} was made with {_words(made)}, but this is {_words(versions())}")
    return settings


def _words(made: dict[str, str]) -> str:
    return " and ".join(f"{name} {version}" for name, version in made.items())


def changes(launch: Launch, rule: Launch) -> dict[str, Any]:
    """The fields of a launch that differ from the rule's."""
    return {x.name: getattr(launch, x.name) for x in fields(launch) if getattr(launch, x.name) != getattr(rule, x.name)}


def forget() -> None:
    """Read the files again."""
    found_on.cache_clear()
    for rule in TUNABLES.values():
        rule.forget()
