"""Recipes: YAML files with training options and a header that documents them."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vitfast.errors import UserError, explain_os_error, one_line
from vitfast.files import open_regular

_FOLDER = Path(__file__).parent / "recipes"

# a few lines of YAML can describe millions of values, by repetition of an anchor
_MAX_BYTES, _MAX_VALUES, _MAX_DEPTH = 1 << 20, 10_000, 20

_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "timestamp")}
_VALUE_TAGS = _TAGS | {f"tag:yaml.org,2002:{name}" for name in ("null", "seq", "map")}


def list_recipes() -> dict[str, str]:
    """Lists the built-in recipes: name -> first line of the header."""
    files = sorted(_FOLDER.glob("*.yaml"))
    return {path.stem: path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ") for path in files}


def find_recipe(recipe: str) -> Path:
    """Finds the file of a recipe.

    Args:
        recipe: name of a built-in recipe, or path of a .yaml file.

    Raises:
        UserError: if it does not exist; the message lists the built-in recipes.
    """
    is_file_name = recipe.endswith((".yaml", ".yml"))
    if "/" not in recipe and not is_file_name:
        path = _FOLDER / f"{recipe}.yaml"
        with explain_os_error(f"recipe={recipe} cannot be read"):
            if path.is_file():
                return path
        near = difflib.get_close_matches(recipe, list_recipes(), n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"there is no recipe {recipe!r}; {hint}{_known()}")
    with explain_os_error(f"recipe={recipe} cannot be read"):
        path = Path(os.path.expanduser(recipe))
        if path.is_dir():
            raise UserError(f"recipe={recipe} is a folder; give a .yaml file, e.g. the config.yaml of a run in it")
        if not path.is_file():
            raise UserError(f"the recipe file {recipe} does not exist; {_known()}")
    if not is_file_name:
        raise UserError(f"recipe={recipe} is not a .yaml file; {_known()}")
    return path


def read_recipe(path: Path) -> dict[str, Any]:
    """Reads a recipe file.

    The file is not trusted: it cannot read the environment or other files, and no more is allocated than a recipe
    needs.

    Returns:
        The options as nested dictionaries.

    Raises:
        UserError: if the file is not YAML, has no options, or has more than options: interpolations, other YAML types.
    """
    try:
        with open_regular(path) as file:
            encoded = file.read(_MAX_BYTES + 1)
        if len(encoded) > _MAX_BYTES:
            raise UserError(f"{path} is not a recipe: it has more than {_MAX_BYTES:,} bytes")
        text = encoded.decode("utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is None:
            return {}
        if not isinstance(root, yaml.MappingNode):
            raise UserError(
                f"{path} holds no options; a recipe has lines such as 'seed: 1' and sections such as 'optim:'"
            )
        _check_nodes(path, root)
        content: Any = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}{line} is not YAML: {error.problem}") from error
    except UserError:
        raise
    except (OSError, ValueError, TypeError, RecursionError, OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as a recipe: {one_line(error)}") from error
    return {str(key): value for key, value in content.items()}


def refuse_interpolation(where: str, text: str) -> None:
    """Raises UserError if a value refers to the environment or to other options: ``${oc.env:HOME}``."""
    if "${" in text:
        raise UserError(f"{where}: interpolations such as ${{oc.env:HOME}} are not resolved; write the value itself")


def _check_nodes(path: Path, root: yaml.Node) -> None:
    """Refuses YAML types that options do not have, and too many values; an alias counts like a copy."""
    nodes, count = [(root, 0)], 0
    while nodes:
        node, depth = nodes.pop()
        count += 1
        if depth > _MAX_DEPTH or count > _MAX_VALUES:
            raise UserError(f"{path} is not a recipe: it has more than {_MAX_VALUES:,} values, or {_MAX_DEPTH} levels")
        where = f"{path}, line {node.start_mark.line + 1}"
        if node.tag not in _VALUE_TAGS:
            raise UserError(f"{where}: a value of the type {node.tag.rpartition(':')[2]}, which no option has")
        if isinstance(node, yaml.ScalarNode):
            refuse_interpolation(where, node.value)
        elif isinstance(node, yaml.SequenceNode):
            nodes += [(value, depth + 1) for value in node.value]
        else:
            if any(key.tag not in _TAGS for key, _ in node.value):
                raise UserError(f"{where}: a key that is not the name of an option")
            nodes += [(value, depth + 1) for _, value in node.value]


def _known() -> str:
    return f"there are: {', '.join(list_recipes())}; or give the path of a .yaml file"
