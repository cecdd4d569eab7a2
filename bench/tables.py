"""Generates the tables of measurements from bench/results/: docs/benchmarks.md, and the part of README.md between its
markers.

python bench/tables.py
"""

import json
import re
from pathlib import Path
from typing import Any

from ltfast.benchmark.results import FLOORS, by_case, digits, largest

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench/results"
PAGES = {"cpu": "CPU", "cpu_large": "CPU, ViT-B/16 with prompts", "h200": "H200"}
README = ("cpu", "h200")
README_OPS = ("agcl", "balanced_bce", "proco", "dscl")
NOT_PEERS = (*FLOORS, "linear + cross_entropy")  # the latter is another loss
# case, peer, minimum time relative to ltfast, maximum of ltfast's memory relative to the peer's
GOALS = (
    ("agcl 256 x 1000 float32", "eager", 10, None),
    ("agcl 256 x 1000 float32", "torch.compile", 5, None),
    ("agcl 1024 x 8142 float32", "eager", 10, None),
    ("agcl 1024 x 8142 float32", "torch.compile", 5, None),
    ("proco 256 x 1000 x 128 float32", "published", 150, 1 / 50),
    ("dscl 256 x 65536 x 128 float32", "eager", 5, 1 / 10),
    ("patch_roi_pool 64 x 2048 x 7 x 7, 5 boxes, contiguous float32", "torchvision", 8, None),
    ("taylor_importance_ ResNet-50 float32", "copy", 2 / 1.9, None),  # the copy moves twice the parameters
    ("prompts vit_base_patch16_224, 16 images, 10 + 10 prompts float32", "published", 1.8, 1),
)
BEGIN, END = "<!-- bench -->", "<!-- end of bench -->"


PICTURES = {
    "speedups": "Time of the other implementations relative to ltfast",
    "roofline": "Throughput of each op compared with the limits of the machine",
    "growth": "Time as a function of the problem size",
}
SUMMARY = """The picture shows the time of the other implementations relative to ltfast on a CPU, for the largest case
of each op. No GPU has been measured yet.

`make bench` runs the benchmark, and `make tables` generates this page from `bench/results/`."""
COLUMNS = """The columns:

- **step**: the op and the size of its input. A step is the forward and the backward pass, with the gradients that
  training needs.
- **ltfast**: the median time of a step.
- **of the limit**: the hardware lower bound divided by the measured time, and the resource that sets the bound. The
  bound is the longest of three times: the bytes at the rate of a copy (memory), the matrix products at the best rate
  of the library (matrix), and the exponentials at PyTorch's rate (exp). The share can exceed 100 % if the data stay in
  a cache.
- **plain PyTorch**, **`torch.compile`** and **published, library**: the times of these implementations relative to
  ltfast. "Published" is the algorithm of the paper's authors.
- **memory, others'**: the peak memory of a step without its inputs, for ltfast and for the implementation that needs
  most."""
STEPS = """Complete training steps, measured by `ltfast bench step` with ltfast's losses and with the published ones.
These figures were measured before the command timed the methods' own stages; they were not measured again.
"In the loss" is the share of the step that the loss takes:"""
EXPECTED = """Goals that were set before the measurement: the minimum time of the other implementation relative to
ltfast, and the maximum of ltfast's memory as a fraction of the other's. `eager` is plain PyTorch:"""
METHOD = """## Measurement method

Inputs rotate through more memory than the last-level cache holds, and the implementations take turns. The first call,
which includes compilation, is listed separately. Memory is the peak of a step without its inputs. Implementations that
write hundreds of MiB vary by half from run to run, depending on how the operating system provides their pages; so do
the ratios to them.

In the tables below, `eager` is plain PyTorch. `copy` and `matmul` are lower bounds, not implementations: a copy of the
data, and only the matrix products. `linear + cross_entropy` is another loss, listed for comparison."""


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
            f"{digits(ours['median_ms'])} ms",
            f"{100 * ours['share']:.0f} %, {ours['limit']}",
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
    lines = [
        "| case | implementation | median ms | quartiles | times ltfast | of the limit | peak MiB | first call s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in results["rows"]:
        cells = [
            row["case"],
            row["implementation"],
            digits(row["median_ms"]),
            f"{digits(row['q1_ms'])} - {digits(row['q3_ms'])}",
            digits(row["times_ltfast"]),
            "" if row["implementation"] in FLOORS else f"{100 * row['share']:.0f} %, {row['limit']}",
            "" if row["peak_mib"] is None else digits(row["peak_mib"]),
            f"{row['first_ms'] / 1e3:.1f}",
        ]
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
            digits(row["median_ms"]),
            digits(row["images_per_s"]),
            f"{row['times_ltfast']:.2f}",
            f"{100 * row['loss_share']:.1f} %",
            "" if row["peak_mib"] is None else digits(row["peak_mib"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def goals(results: dict[str, Any]) -> list[str]:
    lines = [
        "| case | compared with | goal | measured | memory: goal | measured |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for case, peer, least, most in GOALS:
        rows = by_case(results).get(case)
        if rows is None:
            continue
        share = rows["ltfast"]["peak_mib"] / rows[peer]["peak_mib"] if most else None
        met = "met" if rows[peer]["times_ltfast"] >= least else "missed"
        cells = [case, peer, f"{digits(least)}x", f"{against(rows[peer])}, {met}"]
        cells += ["", ""] if share is None else [f"1/{1 / most:.0f}", f"1/{digits(1 / share)}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def conditions(results: dict[str, Any]) -> str:
    about, limits = results["machine"], results["ceilings"]
    return (
        f"{about['machine']}, {about['threads']} threads, {about['isa']}, PyTorch {about['torch']}, commit "
        f"{about['commit']}; medians of one run. Limits measured in the same run: {limits['bytes'] / 1e9:.0f} GB/s "
        f"copied, {limits['flops']['float32'] / 1e9:.0f} GFLOP/s of float32 matrix products, "
        f"{limits['exps'] / 1e9:.2g} G exponentials/s."
    )


def picture(folder: str, name: str) -> list[str]:
    file = f"bench/results/{folder}/{name}.png"
    return [f"![{PICTURES[name]}](../{file})", ""] if (ROOT / file).exists() else []


def main() -> None:
    page = ["# Measurements", "", *picture("cpu", "speedups"), SUMMARY, ""]
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
            page += [STEPS, "", *steps(json.loads(stepped.read_text())["rows"]), ""]
        page += [EXPECTED, "", *goals(results), "", *picture(folder, "roofline"), *picture(folder, "growth")]
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
