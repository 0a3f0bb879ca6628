"""Recipes: YAML files with training options and a header that documents them."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from omegaconf import OmegaConf

from vitfast.errors import UserError

_FOLDER = Path(__file__).parent / "recipes"


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
    if "/" not in recipe and not recipe.endswith((".yaml", ".yml")):
        path = _FOLDER / f"{recipe}.yaml"
        if path.is_file():
            return path
        near = difflib.get_close_matches(recipe, list_recipes(), n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"there is no recipe {recipe!r}; {hint}{_known()}")
    path = Path(recipe).expanduser()
    if path.is_dir():
        raise UserError(f"recipe={recipe} is a folder; give a .yaml file, e.g. the config.yaml of a run in it")
    if not path.is_file():
        raise UserError(f"the recipe file {recipe} does not exist; {_known()}")
    return path


def read_recipe(path: Path) -> dict[str, Any]:
    """Reads a recipe file.

    Returns:
        The options as nested dictionaries; interpolations such as ``${oc.env:HOME}`` are unresolved.

    Raises:
        UserError: if the file is not YAML or has no options.
    """
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}{line} is not YAML: {error.problem}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as a recipe: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no options; a recipe has lines such as 'seed: 1' and sections such as 'optim:'")
    return {str(key): value for key, value in content.items()}


def _known() -> str:
    return f"there are: {', '.join(list_recipes())}; or give the path of a .yaml file"
