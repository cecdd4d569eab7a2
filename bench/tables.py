"""Writes README.md's tables of measurements from bench/results/, so that no figure is typed by hand.

python bench/tables.py
"""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
QUEUE = ("dscl", "pbsd", "supcon", "roi_pool")
MODEL = ("taylor_importance_", "importance_threshold", "apply_masks_", "test-time weights")


def losses(groups: dict) -> list[str]:
    """Forward and backward in milliseconds, and how many times as long the others take."""
    peers = ("eager", "torch.compile", "published")
    lines = [
        "| batch x classes (x width), float32 | ltfast | plain PyTorch | `torch.compile` | published algorithm |",
        "| --- | --- | --- | --- | --- |",
    ]
    for group, rows in groups.items():
        if group.endswith("float32") and "torch.compile" in rows and not group.startswith(QUEUE + MODEL):
            ours = rows["ltfast"]["median_ms"]
            cells = [f"{ours:.2f} ms", *(against(rows, peer, ours) for peer in peers)]
            lines.append(f"| {group.removesuffix(' float32').replace('_', ' ')} | {' | '.join(cells)} |")
    return lines if len(lines) > 2 else []


def queue(groups: dict) -> list[str]:
    """The losses over a memory queue, published or a library's, and the pooling that DSCL needs beside them."""
    libraries = ("pytorch-metric-learning", "torchvision")
    lines = [
        "| batch x queue x width, or as named, float32 | ltfast | plain PyTorch | `torch.compile` | a library |",
        "| --- | --- | --- | --- | --- |",
    ]
    for group, rows in groups.items():
        if group.startswith(QUEUE):
            ours = rows["ltfast"]["median_ms"]
            library = [f"{against(rows, name, ours)} ({name})" for name in libraries if name in rows]
            cells = [f"{ours:.2f} ms", *(against(rows, peer, ours) for peer in ("eager", "torch.compile")), *library]
            name = group.removesuffix(", forward + backward").removesuffix(" float32").replace("_", " ")
            lines.append(f"| {name} | {' | '.join(cells)} |{'' if library else ' |'}")
    return lines if len(lines) > 2 else []


def bessel(groups: dict) -> list[str]:
    """A million logarithms of Bessel functions."""
    peers = ("scipy", "TensorFlow Probability")
    lines = [f"| a million float64 values | ltfast | {' | '.join(peers)} |", "| --- | --- | --- | --- |"]
    for group, rows in groups.items():
        if group.startswith("log_iv") and group.endswith("float64"):
            ours = rows["ltfast"]["median_ms"]
            cells = [f"{ours:.0f} ms", *(against(rows, peer, ours) for peer in peers)]
            order = group.removesuffix(" 1e6 values float64").replace(" order", ", order")
            lines.append(f"| `{order.split(',')[0]}`,{order.split(',')[1]} | {' | '.join(cells)} |")
    return lines if len(lines) > 2 else []


def model(groups: dict) -> list[str]:
    """What pruning does to a whole model, and the weights of its sub-models."""
    lines = ["| decoupled optimisation | ltfast | beside it |", "| --- | --- | --- |"]
    for group, rows in groups.items():
        if group.startswith(MODEL):
            ours = rows["ltfast"]["median_ms"]
            peers = [f"{name} {against(rows, name, ours)}" for name in rows if name != "ltfast"]
            lines.append(f"| {group.removesuffix(' float32')} | {ours:.1f} ms | {'; '.join(peers)} |")
    return lines if len(lines) > 2 else []


def against(rows: dict, peer: str, ours: float) -> str:
    if peer not in rows:
        return ""
    median = rows[peer]["median_ms"]
    return f"{median:.{0 if median >= 100 else 2}f} ms, {median / ours:.1f}x"


def tables(results: dict) -> str:
    about, groups = results["machine"], results["groups"]
    conditions = (
        f"Medians, forward and backward, noise and statistics included, side by side in one run (`make bench`): "
        f"{about['machine']}, {about['threads']} threads, {about['isa']}, PyTorch {about['torch']}, "
        f"commit {about['commit']}."
    )
    blocks = [losses(groups), queue(groups), bessel(groups), model(groups), [conditions]]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def main() -> None:
    readme = ROOT / "README.md"
    text = readme.read_text()
    for file in sorted((ROOT / "bench/results").glob("*.json")):
        begin, end = f"<!-- {file.stem} -->", f"<!-- end of {file.stem} -->"
        block = f"{begin}\n{tables(json.loads(file.read_text()))}\n{end}"
        text, found = re.subn(re.escape(begin) + ".*?" + re.escape(end), lambda _, b=block: b, text, flags=re.DOTALL)
        if not found:
            raise SystemExit(f"README.md has no place for {file.name}: add {begin} and {end}")
    readme.write_text(text)


if __name__ == "__main__":
    main()
