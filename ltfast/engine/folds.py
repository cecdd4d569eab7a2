"""The mean over the folds of a cross-validation."""

import json
import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any

_OF_A_FOLD = ("fold", "seed", "class_counts")  # the settings in which the runs may differ


def over_folds(rows: Mapping[str, Mapping[str, Any]], names: Collection[str]) -> dict[str, list[str]]:
    """The mean and the standard deviation over the folds, for runs whose settings differ in the fold and the seed only.

    Args:
        rows: metrics of each run, by name.
        names: the names of the metrics.

    Returns:
        For each such set of at least two runs, a label and the cells of its row, one for each metric; "-" for a metric
        that one of the runs does not have.
    """
    sets: dict[str, dict[str, Mapping[str, Any]]] = {}
    for name, row in rows.items():
        settings = row.get("settings", {})
        if settings.get("folds") is not None:
            same = {setting: value for setting, value in settings.items() if setting not in _OF_A_FOLD}
            sets.setdefault(json.dumps(same, sort_keys=True), {})[name] = row
    several = [runs for runs in sets.values() if len(runs) > 1]
    result = {}
    for runs in several:
        label = _label([row["settings"] for row in runs.values()])
        label = label if len(several) == 1 else f"{label} ({next(iter(runs))}, ...)"
        result[label] = [_mean([row[name] for row in runs.values()]) for name in names]
    return result


def _label(settings: Sequence[Mapping[str, Any]]) -> str:
    folds, found = settings[0]["folds"], len({own["fold"] for own in settings})
    which = f"{folds} folds" if found == folds else f"{found} of {folds} folds"
    return f"mean of {which}" if len(settings) == found else f"mean of {len(settings)} runs in {which}"


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.mean(known):.1f} ± {statistics.stdev(known):.1f}" if len(known) == len(values) else "-"
