"""Recipes as defaults of the options."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from ltfast.cli.errors import UsageError
from ltfast.cli.options import fits, in_words, may_be_none
from ltfast.recipe import Recipe


def method_of(asked: str | None, recipe: "Recipe | None") -> str:
    """The method that is asked for, the recipe's or the default."""
    from ltfast.methods import METHODS

    if recipe is None or "method" not in recipe.values:
        return "ce" if asked is None else asked
    method = recipe.values["method"]
    if not isinstance(method, str) or method not in METHODS:
        raise UsageError(f"--config {recipe.where('method')}: method: expected one of {', '.join(METHODS)}, "
                         f"got {method!r}")  # fmt: skip
    if asked is not None and asked != method:
        raise UsageError(f"--config {recipe.where('method')}: it is for method {method!r}, not {asked!r}")
    return method


def checked(recipe: "Recipe", method: str, types_: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's settings, of the types that they have to be."""
    values = {}
    for key, value in recipe.values.items():
        if key == "method":
            continue
        if key not in types_:
            near = get_close_matches(key, types_, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UsageError(f"--config {recipe.where(key)}: {key}: expected a setting of method {method}{hint}")
        if value == "none" and may_be_none(types_[key]):
            value = None
        if not fits(value, types_[key]):
            raise UsageError(f"--config {recipe.where(key)}: {key}: expected {in_words(types_[key])}, got {value!r}")
        values[key] = value
    return values
