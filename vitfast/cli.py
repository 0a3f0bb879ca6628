"""The command line: ``vitfast <command> …`` and ``python -m vitfast.<command> …``."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from vitfast import __version__
from vitfast.errors import UserError

# command -> what it does; `vitfast COMMAND …` and `python -m vitfast.COMMAND …` are the same
COMMANDS = {
    "train": "train a model; without options: handwritten digits, about a minute",
    "prepare": "convert a data set to the layout that training reads",
    "evaluate": "measure a checkpoint: accuracy, calibration, a table by class",
    "exits": "find the thresholds at which images leave a model with exits early",
    "quantize": "quantize a checkpoint to low precision and measure the accuracy it costs",
    "export": "write a checkpoint to a file for deployment: .vit, .pt2 or .onnx",
    "predict": "name what images show",
    "embed": "compute embeddings of a collection of images",
    "search": "find similar images among embeddings",
    "visualize": "draw where a model looks in images",
    "benchmark": "measure how fast a model runs on this machine",
    "verify": "check and time the CUDA kernels on this GPU, and enable the proven ones",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``vitfast <command> …``, by default the command line; returns the exit code, 2 for an unknown command."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if len(arguments) > 1 and arguments[0] == "help":
        arguments = [*arguments[1:], "--help"]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        width = max(map(len, COMMANDS))
        print(f"vitfast {__version__}: train and run Vision Transformers, fast\n")
        print("usage: vitfast COMMAND [key=value ...]      (or: python -m vitfast.COMMAND [key=value ...])\n")
        print(*(f"  {command:<{width}}  {text}" for command, text in COMMANDS.items()), sep="\n")
        print("\nvitfast COMMAND --help lists the options of a command.")
        return 0
    if arguments[0] in ("--version", "version"):
        print(f"vitfast {__version__}")
        return 0
    return run_command(_dispatch, arguments)


def _dispatch(arguments: Sequence[str]) -> int:
    command, *options = arguments
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the commands are {', '.join(COMMANDS)}"
        raise UserError(f"unknown command {command!r}; {hint}")
    return _run(command, options, f"vitfast {command}")


def entry_point(command: str) -> Callable[..., int]:
    """Returns the ``main`` of ``python -m vitfast.<command>``; the command's module is imported when it is called."""

    def run(arguments: Sequence[str]) -> int:
        return _run(command, arguments, f"python -m vitfast.{command}")

    return lambda argv=None: run_command(run, sys.argv[1:] if argv is None else argv)


def make_callable(module: str, function_module: str) -> None:
    """Makes the module of a command callable as the public function of its name, which its import hides.

    Args:
        module: ``__name__`` of the command's module.
        function_module: the module of the function, imported at the first call.
    """
    name = module.rpartition(".")[2]

    class _CallableModule(ModuleType):
        def __call__(self, *arguments: Any, **options: Any) -> Any:
            return getattr(importlib.import_module(function_module), name)(*arguments, **options)

    sys.modules[module].__class__ = _CallableModule


def _run(command: str, arguments: Sequence[str], prog: str) -> int:
    """Reads the options, and runs the command; ``--help`` and wrong options do not wait until torch is imported."""
    config = importlib.import_module("vitfast.config")
    given: Any = arguments  # `train` reads its own again: a resumed run has the options of its folder
    if command != "train":
        schemas = importlib.import_module("vitfast.commands.command_options")
        given = config.load_options(getattr(schemas, f"{command.capitalize()}Options"), arguments, prog)
    elif config.asks_for_help(arguments) or not any(one.startswith("train.resume=") for one in arguments):
        config.load_options(config.Config, arguments, prog)
    code: int = importlib.import_module(f"vitfast.commands.{command}").run(given)
    return code


def run_command(command: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    """Runs a command and turns its outcome into an exit code.

    Args:
        command: takes the arguments, returns an exit code.
        arguments: without the program's name.

    Returns:
        The command's exit code; 2 after a ``UserError``, or an error of the system about a file (no permission, a name
        that is too long), which is printed as ``error: …`` without a traceback; 130
        after Ctrl+C; 141 when the reader of stdout has closed it.
    """
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            return command(arguments)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            return 2
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr, flush=True)
            return 130
        except BrokenPipeError:
            # The reader (head, less) has exited. Python would raise again when it flushes stdout at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        except OSError as error:
            if error.filename is None:
                raise
            print(f"error: {error.filename} cannot be used: {error.strerror}", file=sys.stderr, flush=True)
            return 2


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)
