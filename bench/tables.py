"""Writes the tables of measurements from bench/results/, so that no figure is typed by hand: README.md's, between its
markers, and docs/benchmarks.md.

python bench/tables.py
"""

import json
import re
from pathlib import Path
from typing import Any

from ltfast.bench.results import FLOORS, by_case, digits, largest

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench/results"
PAGES = {"cpu": "CPU", "cpu_large": "CPU, ViT-B/16 with prompts", "h200": "H200"}
README = ("cpu", "h200")
NOT_PEERS = (*FLOORS, "linear + cross_entropy")  # another loss
# case, peer, at least so many times as long; of the peer's memory at most
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


NOTES = """How to read them: a step is forward and backward with the gradient that training needs. "Of the limit" is the
least time that this machine could take (bytes at the rate of a copy, matrix products at the library's best rate,
exponentials at PyTorch's, whichever takes longest) over the time taken; it passes 100 % where data stays in a cache.
Inputs rotate through more memory than the last cache holds; implementations take turns; the first call, with what it
compiles, stands apart. Memory is the peak of a step beside its inputs. Peers that write
hundreds of MiB vary by half from run to run, with how they get their pages: a ratio to them does too."""


def against(row: dict[str, Any] | None) -> str:
    return "" if row is None else f"{digits(row['times_ltfast'])}x"


def others(rows: dict[str, dict[str, Any]]) -> str:
    """Published algorithms and libraries."""
    known = ("ltfast", "eager", "torch.compile", *NOT_PEERS)
    return ", ".join(f"{name} {against(row)}" for name, row in rows.items() if name not in known)


def memory(rows: dict[str, dict[str, Any]]) -> str:
    """Beside the inputs."""
    ours, others = rows["ltfast"]["peak_mib"], [row["peak_mib"] for name, row in rows.items() if name not in NOT_PEERS]
    if ours is None:
        return ""
    most = max(others)
    return f"{digits(ours)} MiB" + (f", up to {digits(most)}" if most > ours else "")


def short(results: dict[str, Any]) -> list[str]:
    """A case of each op; see `largest`."""
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
    lines = ["| case | beside | goal | measured | memory: goal | measured |", "| --- | --- | --- | --- | --- | --- |"]
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
        f"{about['commit']}; medians, side by side in one run. Limits measured in it: {limits['bytes'] / 1e9:.0f} GB/s "
        f"copied, {limits['flops']['float32'] / 1e9:.0f} GFLOP/s of float32 matrix products, "
        f"{limits['exps'] / 1e9:.2g} G exponentials/s."
    )


def main() -> None:
    page = [
        "# Measurements",
        "",
        "Made from `bench/results/` by `make tables`; measured by `make bench`.",
        "",
        NOTES,
        "",
    ]
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
        if folder in README:
            readme += ["", *short(results), "", conditions(results)]
            readme += ["", f"![Times as long as ltfast](bench/results/{folder}/speedups.png)"]
        page += [conditions(results), "", *goals(results), "", *whole(results), ""]
        for picture in ("speedups", "roofline", "growth"):
            if (RESULTS / folder / f"{picture}.png").exists():
                page += [f"![{picture}](../bench/results/{folder}/{picture}.png)", ""]
        stepped = RESULTS / folder / "steps.json"
        if stepped.exists():
            page += [
                "Whole training steps (`ltfast bench step`):",
                "",
                *steps(json.loads(stepped.read_text())["rows"]),
                "",
            ]
    (ROOT / "docs/benchmarks.md").write_text("\n".join(page).rstrip() + "\n")
    path = ROOT / "README.md"
    text = path.read_text()
    block = "\n".join([BEGIN, *readme[1:], END])
    text, found = re.subn(re.escape(BEGIN) + ".*?" + re.escape(END), lambda _: block, text, flags=re.DOTALL)
    if not found:
        raise SystemExit(f"README.md has no place for the measurements: add {BEGIN} and {END}")
    path.write_text(text)


if __name__ == "__main__":
    main()
