"""The command line as ``key=value`` pairs and flags."""

from __future__ import annotations

from dataclasses import dataclass

from vitfast.config.option_list import OptionInfo, find_option, nearest_names
from vitfast.config.recipes import list_recipes
from vitfast.errors import UserError

_FLAGS = {"--help": "help", "-h": "help", "--print-config": "print_config"}


@dataclass(frozen=True)
class Arguments:
    """What stands on the command line.

    Attributes:
        values: key -> text after the ``=``; of a key given twice, the last.
        help: whether ``--help`` or ``-h`` is among the arguments.
        print_config: whether ``--print-config`` is.
    """

    values: dict[str, str]
    help: bool
    print_config: bool


def parse_arguments(argv: list[str], options: dict[str, OptionInfo]) -> Arguments:
    """Splits the arguments of a command; what the values mean is not looked at here.

    Args:
        argv: the arguments, without the program's name.
        options: the known options, for better messages.

    Raises:
        UserError: for an argument that is neither a flag nor of the form ``key=value``.
    """
    values: dict[str, str] = {}
    flags: set[str] = set()
    for argument in argv:
        if argument in _FLAGS:
            flags.add(_FLAGS[argument])
            continue
        key, equals, text = argument.partition("=")
        if not equals or not key or key.startswith("-"):
            raise UserError(_explain_form(argument, options))
        values[key.strip()] = text
    return Arguments(values, "help" in flags, "print_config" in flags)


def _explain_form(argument: str, options: dict[str, OptionInfo]) -> str:
    """Says what is wrong with an argument that is not of the form ``key=value``."""
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
