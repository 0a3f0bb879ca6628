"""``vitfast COMMAND …``."""

from __future__ import annotations

import subprocess
import sys

import pytest

import vitfast
from support.subprocesses import python_environment, run_python
from vitfast.cli import COMMANDS, entry_point, main
from vitfast.commands import command_options
from vitfast.config import Config
from vitfast.config.option import list_options


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_the_commands_are_listed(capsys, arguments):
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    for command, text in COMMANDS.items():
        assert f"  {command}" in shown
        assert text in shown


def test_the_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"vitfast {vitfast.__version__}\n"


def test_an_unknown_command_names_the_nearest(capsys):
    assert main(["trian"]) == 2
    assert capsys.readouterr().err == "error: unknown command 'trian'; did you mean train?\n"
    assert main(["xyz"]) == 2
    assert "the commands are train, prepare, evaluate, exits, quantize, export, predict" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_starts_with_its_most_used_options_and_an_example(capsys, command):
    with pytest.raises(SystemExit) as info:
        main([command, "--help"])
    assert info.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: vitfast {command} ")
    usage, _, example, table, *_ = shown.split("\n\n")
    assert f"vitfast {command} --help" not in usage
    (line,) = example.splitlines()
    assert line.startswith(f"example: vitfast {command} ")
    schema = Config if command == "train" else getattr(command_options, f"{command.capitalize()}Options")
    known = list_options(schema)
    assert all(argument.partition("=")[0] in known for argument in line.split()[3:])
    rows = [row.split()[0] for row in table.splitlines() if row.startswith("  ") and row[2] != " "]
    assert len(rows) == min(10, len(known))
    with pytest.raises(SystemExit):
        main(["help", command])
    assert capsys.readouterr().out == shown
    with pytest.raises(SystemExit):
        entry_point(command)(["--help"])
    assert capsys.readouterr().out == shown.replace(f"vitfast {command} ", f"python -m vitfast.{command} ")
    assert main([command, "nonsense=1"]) == 2
    assert "nonsense" in capsys.readouterr().err


def test_help_and_wrong_options_do_not_load_torch():
    code = (
        "import sys; from vitfast.cli import COMMANDS, main\n"
        "for command in COMMANDS:\n"
        "    try: main([command, '--help'])\n"
        "    except SystemExit: pass\n"
        "    assert main([command, 'nonsense=1']) == 2\n"
        "print(sorted({*sys.modules} & {'torch', 'torchvision', 'torchmetrics', 'matplotlib', 'numpy'}))"
    )
    finished = run_python("-c", code)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines()[-1] == "[]"


def test_the_module_runs_and_loads_no_command_to_list_them():
    code = (
        "import sys, runpy; sys.argv = ['vitfast']\n"
        "try: runpy.run_module('vitfast', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "print(sorted({*sys.modules} & {'torchvision', 'matplotlib', 'omegaconf', 'vitfast.train'}))"
    )
    finished = run_python("-c", code)
    assert finished.returncode == 0, finished.stderr
    assert "train a model" in finished.stdout
    assert finished.stdout.splitlines()[-1] == "[]"


def test_a_file_that_the_system_refuses_is_named(capsys, monkeypatch):
    def refuse(options):
        raise PermissionError(13, "Permission denied", "/root/secret")

    monkeypatch.setattr("vitfast.commands.predict.run", refuse)
    assert main(["predict", "checkpoint=a", "images=b"]) == 2
    assert capsys.readouterr().err == "error: /root/secret cannot be used: Permission denied\n"


@pytest.mark.parametrize("command", [["predict", "images=a.png"], ["evaluate"], ["visualize", "images=a.png"]])
def test_a_name_that_is_too_long(capsys, command):
    assert main([*command, f"checkpoint={'a' * 300}"]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_reader_that_leaves_early_is_no_error():
    command = "lambda _: print('a line\\n' * 50_000)"  # more than a pipe holds
    program = f"import sys; from vitfast.cli import run_command; sys.exit(run_command({command}, []))"
    script = f'"{sys.executable}" -c "{program}" | head -n 1; exit ${{PIPESTATUS[0]}}'
    environment = python_environment()
    finished = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert (finished.returncode, finished.stdout, finished.stderr) == (141, "a line\n", "")
