"""Uses the settings of recipes as defaults of the command-line options."""

from collections.abc import Mapping
from typing import Any

from ltfast.cli.errors import UsageError
from ltfast.cli.options import fitted, mismatch
from ltfast.cli.parser import did_you_mean
from ltfast.recipe import Recipe


def method_of(asked: str | None, recipe: Recipe | None, known: Mapping[str, Any]) -> str:
    """The requested method, or that of the recipe, or the default.

    Raises:
        UsageError: the method is unknown, or the recipe is for another method.
    """
    if asked is not None and asked not in known:
        raise UsageError(f"--method: {_expected(asked, known)}")
    if recipe is None or "method" not in recipe.values:
        return "ce" if asked is None else asked
    method, place = recipe.values["method"], f"--config {recipe.where('method')}"
    if method not in list(known):  # a list in the recipe is not hashable
        raise UsageError(f"{place}: method: {_expected(method, known)}")
    if asked is not None and asked != method:
        raise UsageError(f"{place}: the recipe is for method {method!r}, not {asked!r}")
    return method


def checked(recipe: Recipe, method: str, types: Mapping[str, Any], elsewhere: Mapping[str, str]) -> dict[str, Any]:
    """Check the settings in a recipe, and convert them to their types.

    Args:
        recipe: the recipe.
        method: the method of the run.
        types: setting names -> types.
        elsewhere: names of settings of other methods -> descriptions ("an option of method dscl").

    Raises:
        UsageError: a setting is unknown, or a value has another type; the message names the line.
    """
    values = {}
    for key, value in recipe.values.items():
        if key == "method":
            continue
        if key not in types:
            hint = f"; it is {elsewhere[key]}" if key in elsewhere else did_you_mean(key, types)
            raise UsageError(f"--config {recipe.where(key)}: {key}: expected a setting of method {method}{hint}")
        try:
            values[key] = fitted(value, types[key])
        except ValueError as error:
            raise UsageError(f"--config {recipe.where(key)}: {key}: {mismatch(value, types[key])}") from error
    return values


def _expected(method: Any, known: Mapping[str, Any]) -> str:
    return f"expected one of {', '.join(known)}, got {method!r}{did_you_mean(str(method), known)}"
