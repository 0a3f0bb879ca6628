"""From ``key=value`` arguments, on top of a recipe, to a dataclass whose values are known to be allowed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml  # type: ignore[import-untyped]
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vitfast.config.arguments import parse_arguments
from vitfast.config.check import check_limits, check_options
from vitfast.config.format_value import format_value
from vitfast.config.help import help_text
from vitfast.config.option_list import OptionInfo, find_option, list_options, list_sections, nearest_names
from vitfast.config.recipes import find_recipe, read_recipe
from vitfast.config.schema import Config
from vitfast.errors import UserError

Options = TypeVar("Options")


def load_config(argv: list[str], prog: str = "python -m vitfast.train") -> Config:
    """Reads the options of a training run: defaults, then the recipe, then the arguments.

    ``--help`` prints the options, ``--print-config`` the configuration as YAML, and both leave the program with 0.

    Args:
        argv: the arguments, without the program's name: ``recipe=NAME|FILE.yaml``, ``key=value``, flags.
        prog: the command, for the help text.

    Returns:
        The configuration. Its ``recipe`` is what the recipe file says about itself, if it does (the ``config.yaml``
        of a run does), else what the arguments say.

    Raises:
        UserError: for an unknown recipe or key, a wrong type, a value that is not allowed.
        SystemExit: with code 0, after ``--help`` or ``--print-config``.
    """
    return _load(Config, argv, prog)


def load_options(schema: type[Options], argv: list[str], prog: str) -> Options:
    """Reads the options of any command: the defaults of ``schema``, then the arguments.

    Args:
        schema: a dataclass, best made with ``option``; a field without a default is required.
        argv: the arguments, without the program's name: ``key=value`` and flags.
        prog: the command, for the help text.

    Raises:
        UserError: for an unknown or missing key, a wrong type, a value that is not allowed.
        SystemExit: with code 0, after ``--help`` or ``--print-config``.
    """
    return _load(schema, argv, prog)


def to_yaml(options: Any) -> str:
    """Writes a configuration as YAML; ``load_config(["recipe=<that file>"])`` gives an equal one."""
    return OmegaConf.to_yaml(OmegaConf.structured(options))


def _load(schema: type[Options], argv: list[str], prog: str) -> Options:
    known = list_options(schema)
    arguments = parse_arguments(argv, known)
    config = OmegaConf.structured(schema)
    if schema is Config:
        _apply_recipe(config, known, arguments.values.get("recipe", known["recipe"].default))
    if arguments.help:
        print(help_text(schema, prog, config))
        raise SystemExit(0)
    for key, text in arguments.values.items():
        info = _require_known(schema, known, key)
        if key != "recipe" or schema is not Config:
            _set(config, info, key, _parse_value(info, key, text))
    for key, info in known.items():
        if info.required and OmegaConf.is_missing(config, key):
            raise UserError(f"{key}=… is missing: {info.help}; {prog} --help lists all options")
    try:
        options: Options = OmegaConf.to_object(config)  # type: ignore[assignment]
    except OmegaConfBaseException as error:  # an interpolation without a target
        raise UserError(f"{error.full_key}: {_first_line(error)}") from error
    if arguments.print_config:
        check_limits(options)
        print(to_yaml(options), end="")
        raise SystemExit(0)
    check_options(options)
    return options


def _apply_recipe(config: DictConfig, known: dict[str, OptionInfo], recipe: str, below: tuple[Path, ...] = ()) -> None:
    """Sets what a recipe says, on top of the recipe that it names as its ``base``."""
    path = find_recipe(recipe)
    if path in below:
        raise UserError(f"{path} is its own base, through {', '.join(map(str, below))}; take one base out")
    content = read_recipe(path)
    base = content.pop("base", None)
    if base is not None:
        _apply_recipe(config, known, str(base), (*below, path))
    config.recipe = recipe
    try:
        for key, value in _flatten(content, Config):
            _set(config, _require_known(Config, known, key), key, value)
    except UserError as error:
        raise error if str(path) in str(error) else UserError(f"in {path}: {error}") from error


def _flatten(content: dict[Any, Any], schema: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) for each entry of nested dictionaries; a mapping option stays whole."""
    sections = list_sections(schema)
    for name, value in content.items():
        if name in sections and (value is None or isinstance(value, dict)):
            yield from _flatten(value or {}, sections[name], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _require_known(schema: type, known: dict[str, OptionInfo], key: str) -> OptionInfo:
    info = find_option(known, key)
    if info is not None:
        return info
    if key in list_sections(schema):
        inside = ", ".join(name for name in known if name.startswith(key + "."))
        raise UserError(f"{key} is a section, not an option; it holds {inside}")
    raise UserError(
        f"there is no option {key!r}; did you mean {' or '.join(nearest_names(key, known))}? --help lists all options"
    )


def _parse_value(info: OptionInfo, key: str, text: str) -> Any:
    """Reads the text of an argument: as it stands for an option that is text, else as YAML."""
    if not text.strip():
        none = "; write null for none" if info.optional else ""
        raise UserError(f"{key}= has no value; expected {info.expected()}{none} ({info.help})")
    if info.value_type is str:  # so that a folder named 007 or 1e3 keeps its name
        return None if info.optional and text == "null" else text
    try:
        content: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{key}={text} cannot be read; expected {info.expected()} ({info.help})") from error
    return content["value"]


def _set(config: DictConfig, info: OptionInfo, key: str, value: Any) -> None:
    """Sets an option, or an entry of a mapping option."""
    try:
        OmegaConf.update(config, key, value, merge=True)
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        given = f"{key}={format_value(value)}"
        raise UserError(f"{given} has the wrong type; expected {info.expected()} ({info.help})") from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
