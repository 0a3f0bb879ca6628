"""The directive ``generate``: content that is made from the package and the committed results when the site is built.

    ```{generate} speed epyc-zen4
    ```

The first word names a function of `CONTENT`, the others are its arguments. It returns Markdown.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import figures
import model_tables
import package_reference
from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.nodes import make_refnode

import vitfast

CONTENT: dict[str, Callable[..., str]] = {
    "accuracy": figures.accuracy_table,
    "architecture": package_reference.architecture,
    "comparison": figures.comparison_table,
    "libraries": figures.libraries_table,
    "models": model_tables.model_table,
    "operators": package_reference.operators,
    "options": package_reference.options_of_command,
    "recipes": package_reference.recipes,
    "run": figures.run_table,
    "shares": figures.shares_table,
    "speed": figures.speed_table,
}


class Generate(Directive):
    """Inserts the Markdown that a function of ``CONTENT`` returns."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Returns the parsed content."""
        name, *arguments = self.arguments[0].split()
        lines = CONTENT[name](*arguments).splitlines()
        container = nodes.section()
        container.document = self.state.document
        self.state.nested_parse(StringList(lines, source=f"generate {name}"), 0, container, match_titles=True)
        return container.children


def use_public_name(app: Sphinx, env: Any, node: Any, contents: Any) -> Any:
    """Resolves ``vitfast.quantization.configs.FP16_16Config``, as annotations have it, to ``vitfast.FP16_16Config``."""
    module, _, name = node.get("reftarget", "").rpartition(".")
    if vitfast._PUBLIC_NAMES.get(name) != module:
        return None
    found = env.get_domain("py").objects.get(f"vitfast.{name}")
    return found and make_refnode(app.builder, node["refdoc"], found.docname, found.node_id, contents)


def mark_results_as_orphans(app: Sphinx, docname: str, source: list[str]) -> None:
    """Results and the benchmarks' own pages are linked, but are in no table of contents."""
    if docname.startswith("benchmarks/"):
        source[0] = f"---\norphan: true\n---\n\n{source[0]}"


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the directive and the two hooks."""
    app.add_directive("generate", Generate)
    app.connect("missing-reference", use_public_name)
    app.connect("source-read", mark_results_as_orphans)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
