"""Reference pages that are made from the package: options, recipes, operators and the import layers."""

from __future__ import annotations

import ast
import html
import inspect
from pathlib import Path

import tomllib

import vitfast.ops
from vitfast.commands import command_options
from vitfast.config.option import OptionInfo, format_value, list_options
from vitfast.config.recipes import find_recipe, list_recipes
from vitfast.config.schema import Config

ROOT = Path(__file__).parents[2]


def options_of_command(command: str) -> str:
    """The options of a command, by section, as tables."""
    schema = Config if command == "train" else getattr(command_options, f"{command.capitalize()}Options")
    sections: dict[str, list[OptionInfo]] = {}
    for key, info in list_options(schema).items():
        sections.setdefault(key.rpartition(".")[0], []).append(info)
    blocks = [inspect.getdoc(schema) or ""]
    if example := getattr(schema, "example", ""):
        blocks.append(f"```bash\nvitfast {command} {example}\n```")
    for section, members in sections.items():
        if section:
            summary = (inspect.getdoc(members[0].section) or "").partition("\n")[0]
            blocks.append(f"**`{section}`**: {summary}")
        rows = ["| option | type | default | meaning |", "|---|---|---|---|", *map(_row, members)]
        blocks.append("\n".join(rows))
    return "\n\n".join(blocks)


def _row(info: OptionInfo) -> str:
    default = "(required)" if info.required else f"`{format_value(info.default)}`"
    allowed = info.limits.describe()
    meaning = info.help + (f" ({allowed})" if allowed else "")
    cells = [cell.replace("|", r"\|") for cell in (f"`{info.key}`", info.type_name(), default, meaning)]
    return f"| {' | '.join(cells)} |"


def recipes() -> str:
    """Every recipe with its header."""
    blocks = []
    for name in list_recipes():
        lines = find_recipe(name).read_text().splitlines()
        header = [line[2:] for line in lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]]
        details = "\n".join(header[1:]).strip("\n")
        blocks.append(f"## {name}\n\n{header[0]}" + (f"\n\n```text\n{details}\n```" if details else ""))
    return "\n\n".join(blocks)


def operators() -> str:
    """Autodoc directives of all operators."""
    names = [name for name, one in vars(vitfast.ops).items() if inspect.isfunction(one)]
    entries = "\n".join(f".. autofunction:: vitfast.ops.{name}" for name in sorted(names))
    return f"```{{eval-rst}}\n{entries}\n```"


def architecture() -> str:
    """A drawing of the import layers, and of what each package imports."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    width, row, rows = 760, 46, []
    for index, layer in enumerate(layers):
        names = [name.strip().removeprefix("vitfast.") for name in layer.split("|")]
        commands = len(names) > 4
        title = "thin entry points: " + ", ".join(names) if commands else " | ".join(names)
        below = ", ".join(sorted(set().union(*map(_imports, names)) - set(names))) or "nothing"
        y = index * row
        rows.append(
            f'<rect x="1" y="{y + 1}" width="{width - 2}" height="{row - 8}" rx="6" fill="none" stroke="currentColor"/>'
            f'<text x="12" y="{y + 16}" font-weight="bold" font-size="12">{html.escape(title)}</text>'
            f'<text x="12" y="{y + 32}" font-size="11" opacity="0.75">imports {below}</text>'
        )
    drawing = "".join(rows)
    label = "The packages of vitfast in the order of their imports"
    return (
        f'<div class="diagram"><svg viewBox="0 0 {width} {len(layers) * row}" width="{width}" role="img" '
        f'aria-label="{label}" fill="currentColor" font-family="sans-serif">{drawing}</svg></div>'
    )


def _imports(name: str) -> set[str]:
    """The packages of vitfast that a module or package imports."""
    folder, file = ROOT / "vitfast" / name, ROOT / "vitfast" / f"{name}.py"
    found = set()
    for path in folder.rglob("*.py") if folder.is_dir() else [file]:
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            found |= {module.split(".")[1] for module in modules if module.startswith("vitfast.")}
    return found
