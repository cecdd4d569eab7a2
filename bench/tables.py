"""Writes README.md's tables of measurements from bench/results/, so that no figure is typed by hand.

python bench/tables.py
"""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def table(results: dict) -> str:
    """Forward and backward in milliseconds, and how many times as long the others take."""
    about = results["machine"]
    lines = ["| batch x classes, float32 | ltfast | plain PyTorch | `torch.compile` |", "| --- | --- | --- | --- |"]
    for group, rows in results["groups"].items():
        if not group.endswith("float32"):
            continue
        ours, eager, compiled = (rows[name]["median_ms"] for name in ("ltfast", "eager", "torch.compile"))
        cells = [f"{ours:.2f} ms", *(f"{peer:.2f} ms, {peer / ours:.1f}x" for peer in (eager, compiled))]
        lines.append(f"| {group.removesuffix(' float32').replace('_', ' ')} | {' | '.join(cells)} |")
    lines.append("")
    lines.append(
        f"Medians, forward and backward, noise included, side by side in one run (`make bench`): {about['machine']}, "
        f"{about['threads']} threads, {about['isa']}, PyTorch {about['torch']}, commit {about['commit']}."
    )
    return "\n".join(lines)


def main() -> None:
    readme = ROOT / "README.md"
    text = readme.read_text()
    for file in sorted((ROOT / "bench/results").glob("*.json")):
        begin, end = f"<!-- {file.stem} -->", f"<!-- end of {file.stem} -->"
        block = f"{begin}\n{table(json.loads(file.read_text()))}\n{end}"
        text, found = re.subn(re.escape(begin) + ".*?" + re.escape(end), lambda _, b=block: b, text, flags=re.DOTALL)
        if not found:
            raise SystemExit(f"README.md has no place for {file.name}: add {begin} and {end}")
    readme.write_text(text)


if __name__ == "__main__":
    main()
