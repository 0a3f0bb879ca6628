"""``vitfast VERB …``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import vitfast
from support.subprocesses import run_python
from vitfast.cli import VERBS, main


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_the_verbs_are_listed(capsys, arguments):
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    for verb, text in VERBS.items():
        assert f"  {verb}" in shown
        assert text in shown


def test_the_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"vitfast {vitfast.__version__}\n"


def test_an_unknown_verb_names_the_nearest(capsys):
    assert main(["trian"]) == 2
    assert capsys.readouterr().err == "error: unknown verb 'trian'; did you mean train?\n"
    assert main(["xyz"]) == 2
    assert "the verbs are train, prepare, evaluate, exits, quantize, predict" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["train", "prepare", "evaluate", "exits", "quantize", "predict", "visualize"])
def test_a_verb_gets_its_options(capsys, verb):
    with pytest.raises(SystemExit) as info:
        main([verb, "--help"])
    assert info.value.code == 0
    assert "usage: " in capsys.readouterr().out
    assert main([verb, "nonsense=1"]) == 2
    assert "nonsense" in capsys.readouterr().err


def test_the_module_runs_and_loads_no_verb_to_list_them():
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


def test_a_reader_that_leaves_early_is_no_error():
    root = Path(vitfast.__file__).parents[1]
    script = f"'{sys.executable}' -m vitfast.train --help | head -n 1"
    finished = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=root, check=False)
    assert finished.stdout.startswith("usage: ")
    assert finished.stderr == ""
