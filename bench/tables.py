"""Generates the tables of measurements from bench/results/: docs/benchmarks.md, and the part of README.md between its
markers.

python bench/tables.py
"""

import json
import re
from pathlib import Path
from typing import Any

from ltfast.benchmark.goals import judge
from ltfast.benchmark.results import FLOORS, digits, largest, note, of_limit

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench/results"
PAGES = {"cpu": "CPU", "cpu_large": "CPU, ViT-B/16 with prompts", "h200": "H200"}
README = ("cpu", "h200")
README_OPS = ("agcl", "balanced_bce", "proco", "dscl")
NOT_PEERS = (*FLOORS, "linear + cross_entropy")  # the latter is another loss
BEGIN, END = "<!-- bench -->", "<!-- end of bench -->"


PICTURES = {
    "speedups": "Time of the other implementations relative to ltfast",
    "roofline": "Throughput of each op compared with the limits of the machine",
    "growth": "Time as a function of the problem size",
}
SUMMARY = """The picture shows the time of the other implementations relative to ltfast on a CPU, for the largest case
of each op.{no_gpu}

`make bench` runs the benchmark, and `make tables` generates this page from `bench/results/`."""
COLUMNS = """The columns:

- **step**: the op and the size of its input. A step is the forward and the backward pass, with the gradients that
  training needs.
- **ltfast**: the median time of a step.
- **of the limit**: the hardware lower bound divided by the measured time, and the resource that sets the bound. The
  bound is the longest of three times: the bytes at the rate of a copy (memory), the matrix products at the best rate
  of the library (matrix), and the exponentials at PyTorch's rate, or at that of a GPU's special-function units (exp).
  A share above 110 % is not given: the limit was then measured under other conditions than the step, with data outside
  the caches for instance.
- **plain PyTorch**, **`torch.compile`** and **published, library**: the times of these implementations relative to
  ltfast. "Published" is the algorithm of the paper's authors.
- **memory, others'**: the peak memory of a step without its inputs, for ltfast and for the implementation that needs
  most."""
STEPS = """Complete training steps, measured by `ltfast bench step` with ltfast's losses and with the published ones.
"In the loss" is the share of the step that the loss takes ({where}; medians of one run):"""
EXPECTED = """Goals that were set before the measurement. `eager` is plain PyTorch. "Every case" asks of the worst:"""
METHOD = """## Measurement method

Inputs rotate through more memory than the last-level cache holds, and the implementations take turns. The first call,
which includes compilation, is listed separately. Memory is the peak of a step without its inputs. Implementations that
write hundreds of MiB vary by half from run to run, depending on how the operating system provides their pages; so do
the ratios to them. Where other processes used more than a tenth of the cores during the measurement of a case, its rows
say so.

On a GPU, the time is that of the GPU: of many calls that are captured as one CUDA graph, or, where a step cannot be
captured, of many calls between two events. The host's time is the wall time until a call returns.

In the tables below, `eager` is plain PyTorch. `copy` and `matmul` are lower bounds, not implementations: a copy of the
data, and only the matrix products. `linear + cross_entropy`, and other libraries' cross-entropies beside `agcl` and
`vmf_cross_entropy`, are another loss, listed for comparison."""


def against(row: dict[str, Any] | None) -> str:
    return "" if row is None else f"{digits(row['times_ltfast'])}x"


def others(rows: dict[str, dict[str, Any]]) -> str:
    """The times of published algorithms and libraries."""
    known = ("ltfast", "eager", "torch.compile", *NOT_PEERS)
    return ", ".join(f"{name} {against(row)}" for name, row in rows.items() if name not in known)


def memory(rows: dict[str, dict[str, Any]]) -> str:
    """The peak memory without the inputs."""
    ours, others = rows["ltfast"]["peak_mib"], [row["peak_mib"] for name, row in rows.items() if name not in NOT_PEERS]
    if ours is None:
        return ""
    most = max(others)
    return f"{digits(ours)} MiB" + (f", up to {digits(most)}" if most > ours else "")


def short(results: dict[str, Any]) -> list[str]:
    """The table with one case of each op; see `largest`."""
    lines = [
        "| step | ltfast | of the limit | plain PyTorch | `torch.compile` | published, library | memory, others' |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for op, rows in largest(results).items():
        ours = rows["ltfast"]
        cells = [
            f"`{op}` {ours['size']}",
            "; ".join(filter(None, [f"{digits(ours['median_ms'])} ms", note(ours.get("others"))])),
            of_limit(ours),
            against(rows.get("eager")),
            against(rows.get("torch.compile")),
            others(rows),
            memory(rows),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def few(results: dict[str, Any]) -> list[str]:
    """The table of the README."""

    def measured(row: dict[str, Any]) -> str:
        return f"{digits(row['median_ms'])} ms, {digits(row['peak_mib'])} MiB"

    lines = ["| forward and backward | ltfast | plain PyTorch | `torch.compile` |", "| --- | --- | --- | --- |"]
    cases = largest(results)
    for op in README_OPS:
        rows = cases[op]
        cells = [f"`{op}` {rows['ltfast']['size']}", measured(rows["ltfast"])]
        cells += [f"{measured(rows[peer])} ({against(rows[peer])})" for peer in ("eager", "torch.compile")]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def whole(results: dict[str, Any]) -> list[str]:
    """The table of all rows, with more columns for a GPU, and one more where other processes were busy."""
    headings = ["case", "implementation", "median ms", "quartiles", "times ltfast", "of the limit", "peak MiB"]
    headings.append("first call s")
    rows = results["rows"]
    gpu = any(row.get("host_ms") is not None for row in rows)
    busy = any(note(row.get("others")) for row in rows)
    headings += ["host ms", "timed as", "launches"] * gpu + ["note"] * busy
    lines = [f"| {' | '.join(headings)} |", f"| {' | '.join('---' for _ in headings)} |"]
    for row in rows:
        cells = [
            row["case"],
            row["implementation"],
            digits(row["median_ms"]),
            f"{digits(row['q1_ms'])} - {digits(row['q3_ms'])}",
            digits(row["times_ltfast"]),
            of_limit(row),
            "" if row["peak_mib"] is None else digits(row["peak_mib"]),
            f"{row['first_ms'] / 1e3:.1f}",
        ]
        if gpu:
            launches = "" if row["launches"] is None else str(row["launches"])
            cells += [digits(row["host_ms"]), "graph" if row["captured"] else "calls", launches]
        if busy:
            cells.append(note(row.get("others")))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def steps(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| method | network, images | losses | median ms | images/s | times ltfast | in the loss | peak MiB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        cells = [
            row["method"],
            f"{row['network']}, {row['images']}",
            row["implementation"],
            "; ".join(filter(None, [digits(row["median_ms"]), note(row.get("others"))])),
            digits(row["images_per_s"]),
            f"{row['times_ltfast']:.2f}",
            f"{100 * row['loss_share']:.1f} %",
            "" if row["peak_mib"] is None else digits(row["peak_mib"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def goals(results: dict[str, Any], *, unmeasured: bool) -> list[str]:
    """The table of goals, with or without those that were not measured."""
    lines = ["| case | quantity | goal | measured | |", "| --- | --- | --- | --- | --- |"]
    for goal in judge(results):
        if unmeasured or goal["measured"] is not None:
            cells = [goal["case"], goal["quantity"], goal["goal"], goal["measured"] or "", goal["verdict"]]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def where(about: dict[str, Any]) -> str:
    return (
        f"{about['machine']}, {about['threads']} threads, {about['isa']}, PyTorch {about['torch']}, commit "
        f"{about['commit']}"
    )


def conditions(results: dict[str, Any]) -> str:
    limits = results["ceilings"]
    alone = note(limits.get("others"))
    return (
        f"{where(results['machine'])}; medians of one run. Limits measured in the same run{alone and f' ({alone})'}: "
        f"{limits['bytes'] / 1e9:.0f} GB/s copied, {limits['flops']['float32'] / 1e9:.0f} GFLOP/s of float32 matrix "
        f"products, {limits['exps'] / 1e9:.2g} G exponentials/s."
    )


def picture(folder: str, name: str) -> list[str]:
    file = f"bench/results/{folder}/{name}.png"
    return [f"![{PICTURES[name]}](../{file})", ""] if (ROOT / file).exists() else []


def main() -> None:
    no_gpu = "" if (RESULTS / "h200/results.json").exists() else " No GPU has been measured yet."
    page = ["# Measurements", "", *picture("cpu", "speedups"), SUMMARY.format(no_gpu=no_gpu), ""]
    tables: list[str] = []
    readme: list[str] = []
    for folder, title in PAGES.items():
        file = RESULTS / folder / "results.json"
        page += [f"## {title}", ""]
        if not file.exists():
            page += ["Not measured.", ""]
            if folder in README:
                readme += ["", f"{title}: not measured."]
            continue
        results = json.loads(file.read_text())
        page += [conditions(results), ""]
        if folder in README:
            page += [*short(results), "", COLUMNS, ""]
            readme += ["", *few(results), "", conditions(results)]
        stepped = RESULTS / folder / "steps.json"
        if stepped.exists():
            measured = json.loads(stepped.read_text())
            page += [STEPS.format(where=where(measured["machine"])), "", *steps(measured["rows"]), ""]
        page += [
            EXPECTED,
            "",
            *goals(results, unmeasured=folder in README),
            "",
            *picture(folder, "roofline"),
            *picture(folder, "growth"),
        ]
        tables += [f"## All cases: {title}", "", *whole(results), ""]
    page += [METHOD, "", *tables]
    (ROOT / "docs/benchmarks.md").write_text("\n".join(page).rstrip() + "\n")
    path = ROOT / "README.md"
    text = path.read_text()
    block = "\n".join([BEGIN, *readme[1:], END])
    text, found = re.subn(re.escape(BEGIN) + ".*?" + re.escape(END), lambda _: block, text, flags=re.DOTALL)
    if not found:
        raise SystemExit(f"README.md lacks the markers of the measurements: add {BEGIN} and {END}")
    path.write_text(text)


if __name__ == "__main__":
    main()
