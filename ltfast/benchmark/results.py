"""The results of a bench: `results.json`, tables, and the comparison with another bench."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from ltfast.benchmark.neighbours import is_much
from ltfast.engine.schema import list_of, mapping, number, plain, read_json, record, text
from ltfast.errors import InputError, InputNotFoundError

RESULTS, LINES = "results.json", "results.jsonl"
OTHER_CONDITIONS = "above: the limit was measured under other conditions"
FLOORS = ("copy", "matmul")  # parts that every implementation needs; they are not alternatives to ltfast

_SCHEMA = record(
    {
        "machine": mapping(plain),
        "ceilings": mapping(plain),
        "rows": list_of(
            record(
                {
                    **dict.fromkeys(("case", "op", "dtype", "implementation"), text),
                    **dict.fromkeys(("median_ms", "q1_ms", "q3_ms"), number(above=0)),
                }
            )
        ),
    }
)


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A table of the rows of one case. The spread is half the quartiles' distance, relative to the median. The launches
    of a GPU's kernels are marked if they were captured as a graph."""
    headings = {"ms": 8, "spread": 6, "x ltfast": 8, "of limit": 11, "peak MiB": 8, "first": 7}
    gpu = rows[0]["host_ms"] is not None
    if gpu:
        headings |= {"host ms": 7, "launches": 9}
    result = _table(f"{rows[0]['op']} {rows[0]['size']} {rows[0]['dtype']}", headings)
    below = [note(rows[0]["others"]), f"*) {OTHER_CONDITIONS}" if any(map(is_over, rows)) else ""]
    result.caption = "\n".join(filter(None, below)) or None
    result.caption_justify = "left"
    for row in rows:
        cells = [
            row["implementation"],
            digits(row["median_ms"]),
            f"{50 * (row['q3_ms'] - row['q1_ms']) / row['median_ms']:.0f}%",
            digits(row["times_ltfast"]),
            "above *)" if is_over(row) else of_limit(row).replace(" %,", "%"),
            "" if row["peak_mib"] is None else digits(row["peak_mib"]),
            f"{row['first_ms'] / 1e3:.1f} s",
        ]
        if gpu:
            launches = [] if row["launches"] is None else [str(row["launches"])]
            cells += [digits(row["host_ms"]), ", ".join([*launches, *["graph"] * row["captured"]])]
        result.add_row(*cells)
    return result


def of_limit(row: Mapping[str, Any]) -> str:
    """The share of the limit that a row reaches, and which limit that is; or a statement, if the share is so far above
    100 % that the limit was measured under other conditions than the row: on a busier machine, or without a cache."""
    if row["implementation"] in FLOORS:
        return ""
    return OTHER_CONDITIONS if is_over(row) else f"{100 * row['share']:.0f} %, {row['limit']}"


def is_over(row: Mapping[str, Any]) -> bool:
    """Whether a row is faster than the limit, by more than the noise of its measurement."""
    return row["implementation"] not in FLOORS and row["share"] > 1.1


def note(others: float | None) -> str:
    """What to say of a measurement during which other processes used a share of the cores."""
    return f"not alone: other processes used {100 * others:.0f} % of the cores" if others and is_much(others) else ""


def describe(results: Mapping[str, Any]) -> str:
    """Lines about the machine, its limits, and what was left out or failed."""
    about, limits = results["machine"], results["ceilings"]
    rates = ", ".join(f"{name} {rate / 1e12:.3g}" for name, rate in limits["flops"].items())
    disturbed = note(limits.get("others"))
    reasons: dict[str, list[str]] = {}
    for row in results["missing"]:
        names = reasons.setdefault(row["reason"], [])
        if not row["failed"] and row["implementation"] not in names:
            names.append(row["implementation"])
    return "\n".join(
        [
            ", ".join(f"{key} {value}" for key, value in about.items()),
            f"limits measured here: {limits['bytes'] / 1e9:.0f} GB/s copied (read and written); matrix products in "
            f"TFLOP/s: {rates}; {limits['exps'] / 1e9:.2g} G exponentials/s{disturbed and f'; {disturbed}'}",
            *(f"left out: {', '.join(names)} ({reason})" for reason, names in reasons.items() if names),
            *failures(results["missing"]),
        ]
    )


def failures(missing: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each failure."""
    return [f"failed: {row['case']}, {row['implementation']} ({row['reason']})" for row in missing if row["failed"]]


def describe_goals(goals: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each goal of a bench that was measured, and one about the others."""
    lines = [
        f"goal: {goal['case']}, {goal['quantity']}: {goal['measured']}, {goal['goal']}: {goal['verdict']}"
        for goal in goals
        if goal["measured"] is not None
    ]
    return [*lines, f"goals not measured here: {len(goals) - len(lines)} of {len(goals)}"]


def step_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A table of `run_steps`'s rows of one method."""
    first = rows[0]
    title = f"{first['method']}: {first['network']}, {first['images']} images"
    headings = {"ms": 8, "spread": 6, "images/s": 8, "x ltfast": 8, "in the loss": 11, "peak MiB": 8}
    result = _table(title, headings)
    result.caption = note(first["others"]) or None
    result.caption_justify = "left"
    for row in rows:
        result.add_row(
            row["implementation"],
            digits(row["median_ms"]),
            f"{50 * (row['q3_ms'] - row['q1_ms']) / row['median_ms']:.0f}%",
            digits(row["images_per_s"]),
            f"{row['times_ltfast']:.2f}",
            f"{100 * row['loss_share']:.1f}%",
            "" if row["peak_mib"] is None else digits(row["peak_mib"]),
        )
    return result


def read(path: Path) -> dict[str, Any]:
    """Read a bench's `results.json`, given as a file or its folder.

    Raises:
        InputNotFoundError: there is no such file.
        InputError: the file is not a result of a bench; the message names the place in it.
    """
    path = path / RESULTS if path.is_dir() else path
    if not path.is_file():
        raise InputNotFoundError(f"compare: there is no {path}")
    try:
        results: dict[str, Any] = read_json(path)
        _SCHEMA(results, "")
        if not results["rows"]:
            raise ValueError("rows: expected at least one, got none")
        for case, rows in by_case(results).items():
            if "ltfast" not in rows:
                raise ValueError(f"rows: expected one of ltfast for {case}, got {', '.join(rows)}")
    except ValueError as error:
        raise InputError(f"compare: {path} is no result of ltfast bench: {error}") from error
    return results


def slower(before: Mapping[str, Any], after: Mapping[str, Any], threshold: float) -> tuple[Table, list[str]]:
    """A table of ltfast's times in two results, and the names of the cases that became slower: by more than the
    threshold, with quartiles that do not overlap.

    Raises:
        InputError: the results have no case in common.
    """
    old, new = (by_case(results) for results in (before, after))
    common = [case for case in old if case in new]
    if not common:
        raise InputError("compare: expected results with a case in common")
    result = Table(title=f"ltfast, before and after; slower: over {threshold:g}x", title_justify="left", box=None)
    result.add_column("", no_wrap=True)
    for heading in ("before ms", "after ms", "after / before"):
        result.add_column(heading, justify="right", no_wrap=True, header_style="dim")
    result.add_column("")
    found = []
    for case in common:
        a, b = old[case]["ltfast"], new[case]["ltfast"]
        ratio = b["median_ms"] / a["median_ms"]
        if ratio > threshold and b["q1_ms"] > a["q3_ms"]:
            found.append(case)
        mark = "slower" if case in found else ""
        result.add_row(case, digits(a["median_ms"]), digits(b["median_ms"]), f"{ratio:.2f}", mark)
    return result, found


def digits(value: float) -> str:
    """A number with three significant digits."""
    if value >= 100 or value == 0:
        return f"{value:.0f}"
    return f"{value:.{2 - math.floor(math.log10(value))}f}"


def by_case(results: Mapping[str, Any]) -> dict[str, dict[str, Mapping[str, Any]]]:
    """The rows as a mapping: case -> implementation -> row."""
    cases: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in results["rows"]:
        cases.setdefault(row["case"], {})[row["implementation"]] = row
    return cases


def largest(results: Mapping[str, Any]) -> dict[str, dict[str, Mapping[str, Any]]]:
    """The rows of each op's largest float32 case, among those with the most implementations: op -> implementation ->
    row."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for rows in by_case(results).values():
        ours = rows["ltfast"]
        if ours["dtype"] == "float32":
            before = found.get(ours["op"], rows)
            found[ours["op"]] = max(before, rows, key=lambda r: (len(r), r["ltfast"]["least_ms"]))
    return found


def _table(title: str, headings: Mapping[str, int]) -> Table:
    """An empty table with a column of names and columns of fixed widths, so that consecutive tables line up."""
    result = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 1, 0, 0))
    result.add_column("", width=23, no_wrap=True)
    for heading, width in headings.items():
        result.add_column(heading, width=width, no_wrap=True, justify="right", header_style="dim")
    return result
