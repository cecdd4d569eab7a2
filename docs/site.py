"""Extensions of mkdocs: formulas in docstrings, and pictures of measurements.

mkdocs calls `on_files` and `on_page_markdown`. griffe, which reads the docstrings for mkdocstrings, uses
`MarkdownFormulas`.
"""

import re
import textwrap
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PICTURES = "bench/results"
OPS = "{{ every module of ltfast.ops.__all__ }}"


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pictures of bench/results, which is outside docs/."""
    root = Path(config.config_file_path).parent
    for picture in sorted((root / PICTURES).glob("**/*.png")):
        files.append(File.generated(config, picture.relative_to(root).as_posix(), abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Rewrite the links to these pictures, because the sources link to the parent of docs/, and list the ops."""
    return markdown.replace(f"](../{PICTURES}/", f"]({PICTURES}/").replace(OPS, every_op())


def every_op() -> str:
    """The directives that document the modules of all ops."""
    from ltfast import ops

    modules = dict.fromkeys(".".join(getattr(ops, name).__module__.split(".")[:3]) for name in ops.__all__)
    return "\n\n".join(f"::: {module}\n    options:\n      show_root_full_path: true" for module in modules)


def with_markdown_formulas(text: str) -> str:
    r"""Convert the reStructuredText formulas of a docstring, `.. math::` and :math:`x`, to `$$` and `$x$`."""

    def formulas(match: re.Match[str]) -> str:
        parts = textwrap.dedent(match[1]).strip().split("\n\n")  # one equation each
        return "\n\n".join(f"$$\n{part}\n$$" for part in parts) + "\n"

    text = re.sub(r"^\.\. math::\n\n((?:[ ]+\S.*(?:\n|\Z)|\n(?=[ ]))+)", formulas, text, flags=re.MULTILINE)
    return re.sub(r":math:`([^`]+)`", r"$\1$", text)


class MarkdownFormulas(griffe.Extension):
    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = with_markdown_formulas(obj.docstring.value)
