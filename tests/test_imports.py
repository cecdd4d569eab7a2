"""Modules that need only torch and numpy run with these alone, as after `pip install .`; the others name the missing
package."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# only the standard library, the dependencies of torch and numpy, and ltfast
BLOCK = """
    import importlib.metadata as metadata
    import re
    import sys

    def closure(*names):
        found, todo = set(), list(names)
        while todo:
            name = todo.pop().lower().replace("_", "-")
            try:
                requires = metadata.requires(name) or []
            except metadata.PackageNotFoundError:
                continue
            if name not in found:
                found.add(name)
                todo += [re.match(r"[\\w.-]+", text)[0] for text in requires if "extra ==" not in text]
        return found

    distributions = closure("torch", "numpy")
    modules = {module for module, owners in metadata.packages_distributions().items()
               if {owner.lower().replace("_", "-") for owner in owners} & distributions}
    allowed = modules | set(sys.stdlib_module_names) | {"ltfast", "torch", "numpy"}

    class Only:
        def __init__(self, finder):
            self.finder = finder

        def find_spec(self, name, path=None, target=None):
            top = name.partition(".")[0]
            if top in allowed or top.startswith("_"):
                return self.finder.find_spec(name, path, target)

    sys.meta_path[:] = map(Only, sys.meta_path)
"""


def run(script: str) -> str:
    code = textwrap.dedent(BLOCK) + textwrap.dedent(script)
    result = subprocess.run([sys.executable, "-W", "error::UserWarning:ltfast", "-c", code], capture_output=True,
                            text=True, cwd="/")  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_the_losses_page_needs_torch_and_numpy_alone():
    text = (ROOT / "docs/losses.md").read_text()
    sections = [section for section in text.split("\n## ")[1:] if "```python" in section]
    assert len(sections) >= 7
    blocks = [(section.splitlines()[0], "\n".join(textwrap.dedent(block) for block in
               re.findall(r"```python\n(.*?)```", section, re.DOTALL))) for section in sections]  # fmt: skip
    script = f"""
        import torch
        from torch import nn
        from torch.nn import functional as F
        import ltfast.losses
        from ltfast.losses import *

        features, patches = F.normalize(torch.randn(8, 128)), F.normalize(torch.randn(8, 5, 128), dim=-1)
        labels = torch.arange(8) % 3
        class_counts, num_classes, epochs = [50, 20, 5], 3, 1
        images, mixed, soft_targets = torch.randn(8, 12), torch.randn(8, 12), torch.rand(8, 3)
        query = key = features
        feature_map, boxes, cropped = torch.randn(8, 128, 7, 7), torch.rand(8, 5, 4) * 64, patches
        project = lambda pooled: F.normalize(pooled, dim=-1)
        for name, block in {blocks!r}:
            network, features = nn.Linear(12, 3), torch.randn(8, 768)
            if name == "ProCoLoss":
                backbone, head, batches = nn.Linear(12, 16), nn.Linear(16, 128), [(images, labels)]
            loss = None
            exec(block)
            assert loss.isfinite(), name
            print(name)
        assert "timm" not in sys.modules
    """
    assert run(script).splitlines() == [name for name, _ in blocks]


def test_the_heads_need_torch_alone_and_networks_name_the_extra():
    script = """
        import torch
        import ltfast.compat
        from ltfast.models import ClassParallelCosineClassifier, CosineClassifier, ProjectionHead
        from ltfast.models import SubModels, feature_map

        assert ProjectionHead(4, 3)(CosineClassifier(5, 4)(torch.randn(6, 5))).shape == (6, 3)
        for name in sorted(set(ltfast.models.__all__) - set(vars(ltfast.models))):
            try:
                getattr(ltfast.models, name)
            except ModuleNotFoundError as error:
                assert error.name == "timm"
                print(error)
        try:
            from ltfast.models import ImageClassifier
        except ModuleNotFoundError as error:
            print(error)
        assert not hasattr(ltfast.models, "nonsense")
    """
    lines = run(script).splitlines()
    assert len(lines) == 13
    for line in lines:
        assert re.fullmatch(r"ltfast\.models\.\w+ needs the package timm: pip install 'ltfast\[train\]'", line)


@pytest.mark.slow
def test_importing_the_networks_registers_them_with_timm():
    script = """
        import timm
        import ltfast.models
        print(timm.is_model("resnet32_cifar"), timm.is_model("digits_convnet"), timm.is_model("vit_digits"))
    """
    code = textwrap.dedent(script)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert result.stdout.split() == ["True"] * 3


def test_importing_the_losses_imports_nothing_heavy():
    script = """
        import sys, torch
        before = set(sys.modules)
        import ltfast, ltfast.losses
        new = {name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)
        print(*sorted(new), *sorted(name for name in set(sys.modules) - before if name.startswith("torch.")))
    """
    code = textwrap.dedent(script)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert set(result.stdout.split()) <= {"ltfast", "numpy"}


@pytest.mark.slow
def test_importing_the_losses_takes_a_tenth_of_the_time_of_importing_torch(tmp_path):
    """Compares CPU time, since other processes use the machine too, with bytecode that the first run has written."""
    script = """
        import time
        start = time.process_time()
        import torch
        middle = time.process_time()
        import ltfast, ltfast.losses
        print((time.process_time() - middle) / (middle - start))
    """
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path)}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    run = [
        subprocess.run(command, capture_output=True, text=True, check=True, cwd="/", env=environment) for _ in range(4)
    ]
    assert min(float(result.stdout) for result in run[1:]) < 0.1
