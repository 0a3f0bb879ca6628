"""``python -m vitfast.export``."""

from __future__ import annotations

import pytest

import vitfast
from vitfast.export import main


def test_a_run_becomes_a_file(dvt_run, tmp_path, capsys):
    path = tmp_path / "model.vit"
    assert main([f"checkpoint={dvt_run}", f"path={path}"]) == 0
    assert "agrees with the model in vitfast.load" in capsys.readouterr().out
    assert vitfast.load(path).class_names == [str(digit) for digit in range(10)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("path=model.pt2", "exit=9"), "exit=9 is out of range; allowed: 1 to 2"),
        (("path=model.onnx", "int8=true"), "int8=true needs images="),
        (("path=model.onnx", "precision=bf16"), "precision=bf16 is of accelerated models"),
        (("path=model.vit", "aot=true"), "aot=True applies to .pt2 only, and path=model.vit\n"),
    ],
)
def test_wrong_options_are_named(dvt_run, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    assert main([f"checkpoint={dvt_run}", *options]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
