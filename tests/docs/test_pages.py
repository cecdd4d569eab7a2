"""Messages, options, recipes and files named in the docs exist, and the examples run."""

import ast
import dataclasses
import re
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import ltfast.losses
from ltfast.engine import RunSettings
from ltfast.methods import METHODS
from ltfast.models import CosineClassifier

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted([*ROOT.glob("docs/**/*.md"), ROOT / "README.md"])
SOURCES = sorted(ROOT.glob("ltfast/**/*.py"))
OTHERS = {  # options of torchrun, pip, Apple's tools and timm's train.py
    *("--model", "--num-classes", "--input-size", "--mixup", "--cutmix", "--smoothing", "--layer-decay"),
    *(
        "--nproc-per-node",
        "--nnodes",
        "--rdzv-backend",
        "--rdzv-endpoint",
        "--max-restarts",
        "--force-reinstall",
        "--no-deps",
    ),
    "--install",
}


def words(node: ast.AST) -> str | None:
    """A string or f-string of the source, with … for the variable parts."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(words(part) or "…" for part in node.values)
    return None


@pytest.fixture(scope="module")
def strings() -> list[str]:
    """All messages in the sources, with … for the variable parts."""
    trees = [ast.parse(path.read_text()) for path in SOURCES]
    found = [text for tree in trees for node in ast.walk(tree) if (text := words(node)) is not None]
    # the message of `InputError(problem, name=name)`
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "").endswith("Error") and node.keywords:
                name, problem = (words(part) or "…" for part in (node.keywords[0].value, node.args[0]))
                found.append(f"{name}: {problem}")
    # the messages of `check(condition, name, expected, got)` and `SettingError(name, expected, got)`
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("check", "SettingError"):
                name, expected = (words(part) or "…" for part in node.args[-3:-1])
                found.append(f"{name}: expected {expected}, got …")
    return [" ".join(text.split()) for text in (*found, (ROOT / "pyproject.toml").read_text())]  # as printed


def said(message: str, strings: list[str]) -> bool:
    parts = [part.strip() for part in message.split("…") if part.strip(" .,;:()")]
    pattern = re.compile(".*".join(map(re.escape, parts)))
    return bool(parts) and any(pattern.search(text) for text in strings)


def messages() -> list[str]:
    text = (ROOT / "docs/troubleshooting.md").read_text()
    blocks = re.findall(r"```text\n(.*?)\n```", text, re.DOTALL)
    return blocks + re.findall(r"^\| `(.*?)` \|", text, re.MULTILINE)


@pytest.mark.parametrize("message", messages())
def test_troubleshooting_quotes_messages_that_there_are(message, strings):
    message = message.removeprefix("ltfast: ")
    if flag := re.match(r"--([a-z-]+): ", message):  # the command line prints flags for settings
        name = {"data": "source"}.get(flag[1], flag[1].replace("-", "_"))
        message = f"{name}: {message[flag.end() :]}"
    assert said(message, strings), message


def test_a_message_that_is_nowhere_is_found(strings):
    assert not said("the loss is … at …; …. A higher --lr often helps", strings)


def test_options_that_pages_name():
    settings = [RunSettings, *(method.settings for method in METHODS.values())]
    known = {f"--{field.name.replace('_', '-')}" for owner in settings for field in dataclasses.fields(owner)}
    for script in (*ROOT.glob("ltfast/cli/*.py"), *ROOT.glob("bench/*.py")):
        known |= set(re.findall(r'"(--[a-z-]+)"', script.read_text()))
        known |= {f"--{name.replace('_', '-')}" for name in re.findall(r'Option\(\s*"(\w+)"', script.read_text())}
        known |= {f"--no-{name}" for name in re.findall(r'Option\(\s*"(\w+)",\s*bool', script.read_text())}
    known |= {"--data", "--imbalance", "--profile", "--root", "--help"} | OTHERS
    for page in PAGES:
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", page.read_text()))
        assert named <= known, f"{page.name}: {sorted(named - known)}"


def test_recipes_that_pages_name():
    recipes = {path.relative_to(ROOT / "ltfast/recipes").with_suffix("").as_posix() for path in
               ROOT.glob("ltfast/recipes/*/*.yaml")}  # fmt: skip
    for page in PAGES:
        named = set(re.findall(rf"\b(?:{'|'.join(METHODS)})/[a-z]+[0-9]*(?:-lt)?\b(?![./])", page.read_text()))
        assert named <= recipes, f"{page.name}: {sorted(named - recipes)}"
    text = (ROOT / "docs/methods.md").read_text()
    methods = re.findall(r"`(\w+)`", re.search(r"^\| recipe \|.*$", text, re.MULTILINE)[0])
    table = {
        f"{method}/{recipe}"
        for recipe, cells in re.findall(r"^\| `([\w-]+)` \| ((?:yes)?(?: \| (?:yes)?)*) \|$", text, re.MULTILINE)
        for method, cell in zip(methods, cells.split(" | "), strict=True)
        if cell == "yes"
    }
    assert table == recipes


def test_files_that_readme_links_to():
    for target in re.findall(r"\]\(([^)#]+)", (ROOT / "README.md").read_text()):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


def test_files_that_pages_name():
    for page in PAGES:
        for name in re.findall(r"`((?:ltfast|bench|csrc|tests|docs)/[\w./-]+)`", page.read_text()):
            assert (ROOT / name).exists(), f"{page.name}: {name}"


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_first_example_runs(page):
    example = re.search(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)[1]
    names = {"nn": nn, "class_counts": [50, 20, 5], "logits": torch.randn(8, 3), "labels": torch.randint(3, (8,))}
    exec(example, names)
    assert isinstance(names["criterion"], ltfast.losses.BalancedBCELoss)
    assert names["loss"].isfinite()


def test_the_losses_examples_run():
    """The examples run in order, as for a reader: the queue is created in one and used in the next."""
    features, patches = F.normalize(torch.randn(8, 128)), F.normalize(torch.randn(8, 5, 128), dim=-1)
    labels = torch.randint(3, (8,))
    names = {
        **{name: getattr(ltfast.losses, name) for name in ltfast.losses.__all__},
        **{
            "F": F,
            "nn": nn,
            "torch": torch,
            "CosineClassifier": CosineClassifier,
            "class_counts": [50, 20, 5],
            "num_classes": 3,
            "epochs": 1,
        },
        **{"network": nn.Linear(12, 3), "images": torch.randn(8, 12), "mixed": torch.randn(8, 12), "labels": labels},
        **{"soft_targets": torch.rand(8, 3), "features": torch.randn(8, 768), "query": features, "key": features},
        **{"feature_map": torch.randn(8, 128, 7, 7), "boxes": torch.rand(8, 5, 4) * 64, "cropped": patches},
        "project": lambda pooled: F.normalize(pooled, dim=-1),
    }
    text = (ROOT / "docs/losses.md").read_text()
    sections = [section for section in text.split("\n## ")[1:] if "```python" in section]
    assert len(sections) >= 7
    for section in sections:
        if section.startswith("ProCoLoss"):
            names |= {"backbone": nn.Linear(12, 16), "head": nn.Linear(16, 128), "batches": [(names["images"], labels)]}
        for block in re.findall(r"```python\n(.*?)```", section, re.DOTALL):
            exec(textwrap.dedent(block), names)
        assert names["loss"].isfinite(), section
        del names["loss"]
