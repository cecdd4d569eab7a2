"""The site is built from every page, and broken links are errors."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent.parent


def build(config: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--config-file", str(config), "--site-dir", str(out)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=config.parent)


def test_it_builds_and_every_formula_is_one(tmp_path):
    result = build(ROOT / "mkdocs.yml", tmp_path)
    assert result.returncode == 0, result.stderr
    pages = {page: page.read_text() for page in tmp_path.rglob("*.html")}
    written = list(ROOT.glob("docs/**/*.md"))
    assert len(pages) == len(written) + 1  # 404.html
    for page, text in pages.items():
        for unread in ("math::", ":math:", "$$", "[TOC]", ":::"):
            assert unread not in text, f"{page.name} has {unread}"
    formulas = {page.name: text.count('class="arithmatex"') for page, text in pages.items() if page.parent != tmp_path}
    assert formulas["ops.html"] > 20
    assert formulas["losses.html"] > 5
    assert (tmp_path / "bench/results/cpu/speedups.png").exists()
    assert 'data-md-component="search"' in pages[tmp_path / "index.html"]
    assert (tmp_path / "search/search_index.json").exists()
    beside = re.findall(r'<div class="formula-and-code">\s*<div class="arithmatex">.*?</div>\s*<div class="highlight">',
                        pages[tmp_path / "losses.html"], re.DOTALL)  # fmt: skip
    titles = re.findall(r'<h2 id="([^"]+)"', pages[tmp_path / "losses.html"])
    assert len(beside) == len([title for title in titles if title != "arguments"]) > 8
    measurements = pages[tmp_path / "benchmarks.html"]
    assert measurements.index("<img") < measurements.index("<table>")
    assert measurements.rindex("<h2") < measurements.rindex("<table>")


def test_broken_links_are_errors(tmp_path):
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    for name in ("nav", "plugins", "hooks"):
        del settings[name]
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(settings))
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/other.md").write_text("# Other\n\n[right](index.md#start)\n")
    broken = ["missing.md", "other.md#nowhere", "#here", "/absolute.md", "../README.md"]
    (tmp_path / "docs/index.md").write_text("# Start\n\n" + "\n".join(f"[wrong]({link})" for link in broken) + "\n")
    result = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert result.returncode == 1
    warnings = [line for line in result.stderr.splitlines() if "WARNING" in line]
    assert len(warnings) == len(broken)
    for link in broken:
        assert any(f"'{link}'" in line for line in warnings), link


def test_formulas_of_docstrings():
    spec = importlib.util.spec_from_file_location("docs_site", ROOT / "docs/site.py")
    site = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(site)
    text = r"""Sums :math:`S_c`:

.. math::

    S_c = \sum_i
        z_i

    n_c = 1

with :math:`n_c` of them.

.. math::

    E = 0"""
    expected = r"""Sums $S_c$:

$$
S_c = \sum_i
    z_i
$$

$$
n_c = 1
$$

with $n_c$ of them.

$$
E = 0
$$
"""
    assert site.with_markdown_formulas(text) == expected
    assert site.with_markdown_formulas("Nothing.\n\n    code\n") == "Nothing.\n\n    code\n"
