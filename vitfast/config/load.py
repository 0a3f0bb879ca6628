"""Parses ``key=value`` arguments, on top of a recipe, into a dataclass with validated values."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_origin

import yaml  # type: ignore[import-untyped]
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vitfast.config.help import help_text
from vitfast.config.option import (
    OptionInfo,
    check_limits,
    check_options,
    find_option,
    format_value,
    list_options,
    nearest_names,
)
from vitfast.config.recipes import find_recipe, list_recipes, read_recipe, refuse_interpolation
from vitfast.config.schema import Config
from vitfast.errors import UserError

Options = TypeVar("Options")

_MAX_BASES = 20

# by schema: a copy takes a sixth of the time that the conversion takes
_defaults: dict[type, DictConfig] = {}

_HELP, _PRINT_CONFIG = {"--help", "-h"}, {"--print-config"}


def load_config(argv: Sequence[str]) -> Config:
    """Reads the options of a training run: defaults, then the recipe, then the arguments.

    Args and errors are those of ``load_options``; ``recipe=NAME|FILE.yaml`` chooses the recipe.

    Returns:
        The configuration. Its ``recipe`` is the one named in the recipe file if there is one (the ``config.yaml`` of a
        run names it), else the one from the arguments.
    """
    return load_options(Config, argv, "python -m vitfast.train")


def load_options(schema: type[Options], argv: Sequence[str], prog: str) -> Options:
    """Reads the options of any command: the defaults of ``schema``, then the arguments.

    ``--help`` prints the options, ``--print-config`` the configuration as YAML; both exit with code 0.

    Args:
        schema: a dataclass of ``option`` fields; a field without a default is required.
        argv: the arguments, without the program's name: ``key=value`` and flags.
        prog: the command, for the help text.

    Raises:
        UserError: for an unknown or missing key, a wrong type, a value that is not allowed.
        SystemExit: with code 0, after ``--help`` or ``--print-config``.
    """
    known = list_options(schema)
    values, flags = _split_arguments(argv, known)
    if schema not in _defaults:
        _defaults[schema] = OmegaConf.structured(schema)
    config = copy.deepcopy(_defaults[schema])
    if schema is Config:
        _apply_recipe(config, known, values.get("recipe", known["recipe"].default))
    if flags & _HELP:
        print(help_text(schema, prog, config))
        raise SystemExit(0)
    for key, text in values.items():
        info = _require_known(known, key)
        if key != "recipe" or schema is not Config:
            _set(config, info, key, _parse_value(info, key, text))
    for key, info in known.items():
        if info.required and OmegaConf.is_missing(config, key):
            raise UserError(f"{key}=… is missing: {info.help}; {prog} --help lists all options")
    options: Options = OmegaConf.to_object(config)  # type: ignore[assignment]
    if flags & _PRINT_CONFIG:
        check_limits(options)
        print(to_yaml(options), end="")
        raise SystemExit(0)
    check_options(options)
    return options


def asks_for_help(argv: Sequence[str]) -> bool:
    """Whether ``load_options`` would print and exit: ``--help`` is among the arguments."""
    return not _HELP.isdisjoint(argv)


def to_yaml(options: Any) -> str:
    """Formats a configuration as YAML; ``load_config(["recipe=<that file>"])`` returns an equal one."""
    return OmegaConf.to_yaml(OmegaConf.structured(options))


def _split_arguments(argv: Sequence[str], options: dict[str, OptionInfo]) -> tuple[dict[str, str], set[str]]:
    """Splits arguments into key -> text (the last one of a repeated key) and flags."""
    values: dict[str, str] = {}
    flags: set[str] = set()
    for argument in argv:
        if argument in _HELP | _PRINT_CONFIG:
            flags.add(argument)
            continue
        key, equals, text = argument.partition("=")
        if not equals or not key or key.startswith("-"):
            raise UserError(_explain_form(argument, options))
        values[key.strip()] = text
    return values, flags


def _explain_form(argument: str, options: dict[str, OptionInfo]) -> str:
    """Explains why an argument is not of the form ``key=value``."""
    key, _, text = argument.lstrip("-").partition("=")
    key = key.replace("-", "_")
    rule = "options are written key=value, without dashes or spaces; --help lists them"
    if find_option(options, key):
        return f"{argument!r} is not of the form key=value: write {key}={text or 'VALUE'}; {rule}"
    if argument.startswith("-"):
        return f"{argument!r} is not a flag: there are --help and --print-config; {rule}"
    if argument.startswith("="):
        return f"{argument!r} has no key before the '='; {rule}"
    if "recipe" in options and argument in list_recipes():
        return f"{argument!r} is not of the form key=value: write recipe={argument}; {rule}"
    example = nearest_names(argument, options)[0]
    return f"{argument!r} is not of the form key=value, such as {example}=VALUE; {rule}"


def _apply_recipe(config: DictConfig, known: dict[str, OptionInfo], recipe: str, below: tuple[Path, ...] = ()) -> None:
    """Sets the options of a recipe, on top of the recipe that it names as its ``base``."""
    path = find_recipe(recipe)
    if path in below:
        raise UserError(f"{path} is its own base, through {', '.join(map(str, below))}; remove one base")
    if len(below) > _MAX_BASES:
        raise UserError(f"{below[0]} has a chain of more than {_MAX_BASES} bases; combine some of them")
    content = read_recipe(path)
    base = content.pop("base", None)
    if base is not None:
        if not isinstance(base, str):
            raise UserError(f"in {path}: base={format_value(base)} must be the name of a recipe or a .yaml file")
        _apply_recipe(config, known, base, (*below, path))
    config.recipe = recipe
    try:
        for key, value in _flatten(content, known):
            _set(config, _require_known(known, key), key, value)
    except UserError as error:
        raise error if str(path) in str(error) else UserError(f"in {path}: {error}") from error


def _flatten(content: dict[Any, Any], known: Iterable[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) for each entry of nested dictionaries; a mapping option is not split."""
    for name, value in content.items():
        key = f"{prefix}{name}"
        if _options_in(known, key) and (value is None or isinstance(value, dict)):
            yield from _flatten(value or {}, known, f"{key}.")
        else:
            yield key, value


def _options_in(known: Iterable[str], section: str) -> list[str]:
    return [key for key in known if key.startswith(f"{section}.")]


def _require_known(known: dict[str, OptionInfo], key: str) -> OptionInfo:
    info = find_option(known, key)
    if info is not None:
        return info
    if inside := _options_in(known, key):
        raise UserError(f"{key} is a section, not an option; it contains {', '.join(inside)}")
    raise UserError(
        f"there is no option {key!r}; did you mean {' or '.join(nearest_names(key, known))}? --help lists all options"
    )


def _parse_value(info: OptionInfo, key: str, text: str) -> Any:
    """Parses the text of an argument: verbatim for a text option, else as YAML; lists may lack their brackets."""
    expected = info.type_name(in_error=True)
    refuse_interpolation(f"{key}={text}", text)
    if not text.strip():
        none = "; write null for none" if info.optional else ""
        raise UserError(f"{key}= has no value; expected {expected}{none} ({info.help})")
    if info.value_type is str:  # so that a folder named 007 or 1e3 keeps its name
        return None if info.optional and text == "null" else text
    is_bare_list = get_origin(info.value_type) is list and text.strip() != "null" and text.lstrip()[0] != "["
    try:
        parsed = OmegaConf.from_dotlist([f"value=[{text}]" if is_bare_list else f"value={text}"])
        content: Any = OmegaConf.to_container(parsed, resolve=False)
        return content["value"]
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{key}={text} cannot be read; expected {expected} ({info.help})") from error


def _set(config: DictConfig, info: OptionInfo, key: str, value: Any) -> None:
    """Sets an option, or an entry of a mapping option."""
    try:
        if get_origin(info.value_type) is list and any(isinstance(part, (list, dict)) for part in value or ()):
            raise TypeError("a nested list")  # OmegaConf takes it
        OmegaConf.update(config, key, value, merge=True)
    except (OmegaConfBaseException, TypeError, ValueError, OverflowError) as error:
        expected = f"expected {info.type_name(in_error=True)} ({info.help})"
        raise UserError(f"{key}={format_value(value)} has the wrong type; {expected}") from error
